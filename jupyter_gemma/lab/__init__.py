"""Jupyter Server side: authenticated ``/jupyter-gemma/*`` routes that hand the browser's requests to the client.

Knows Jupyter Server and :class:`~jupyter_gemma.client.Client`. Must not know how a model works, the model server's
inside, notebooks or kernels; it imports no torch, and the model server's token never reaches the browser.
"""
