"""jupyter-gemma: a local, private, multimodal notebook assistant.

Importing this package is instant: it loads no torch and does no work. ``%load_ext jupyter_gemma`` adds the
``%gemma`` and ``%%gemma`` magics; ``from jupyter_gemma import gemma`` is the Python API.
"""

__version__ = "0.1.0"


def _jupyter_server_extension_points() -> list[dict[str, object]]:
    """What Jupyter Server loads: the application of ``lab/``."""
    from jupyter_gemma.lab.extension import GemmaExtension

    return [{"module": "jupyter_gemma.lab.extension", "app": GemmaExtension}]
