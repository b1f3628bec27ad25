"""jupyter-gemma: a local, private, multimodal notebook assistant.

Importing this package is instant: it loads no torch and does no work. ``%load_ext jupyter_gemma`` adds the
``%gemma`` and ``%%gemma`` magics; ``from jupyter_gemma import gemma`` is the Python API.
"""

__version__ = "0.1.0"
