"""How fast and how large the model is on this machine, and how that compares with the memory's limit and llama.cpp.

Knows the model, its operations and how to run them; must not know notebooks, and must not judge: a benchmark
reports figures and never fails because of one.
"""
