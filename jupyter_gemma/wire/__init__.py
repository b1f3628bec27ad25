"""The OpenAI wire form of the contract, as pure functions that both ends use.

Knows JSON, server-sent events, data URIs and base64. Must not know sockets, HTTP libraries, engines or notebooks.
``request`` turns a :class:`~jupyter_gemma.types.Request` into a body and back, ``answer`` does so with answers.
"""
