"""How to generate: tokenizer, chat template, media, sampling, output parser, and the engine that joins them.

Knows text, files of sound and pictures, and the model. Must not know HTTP, servers or notebooks.
"""
