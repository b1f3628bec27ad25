"""The IPython side: magics, Python API, objects of a notebook as parts of a prompt, answers on display.

Knows IPython, the client and the contract. Must not know torch, the model, the engine, HTTP, or the server's inside;
imports no library of the objects it serves (pandas, matplotlib, numpy, PIL) before such an object is handed in.
"""
