"""What Gemma is: configuration, decoder, embedders, masks, caches, quantised weights, checkpoints, placement.

Knows tensors and token ids. Must not know text, templates, sampling, HTTP or notebooks.
"""
