"""WHO may ask the model, and when: the HTTP app, its doors, and the life of the one engine.

Receives an engine loader and knows engines only by their protocol. Must not know torch, model, engine or notebooks.
"""
