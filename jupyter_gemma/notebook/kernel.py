"""The kernel "Python 3 (Gemma)": an ordinary ipykernel in which ``%gemma`` is loaded and the model is warming up.

Started by Jupyter as ``python -m jupyter_gemma.notebook.kernel -f FILE``, see ``kernels/kernelspec/kernel.json``.
"""

from __future__ import annotations

import threading
from contextlib import suppress

from jupyter_gemma.errors import GemmaError
from jupyter_gemma.notebook.api import process_gemma


def main() -> None:
    """Run the kernel until Jupyter ends it."""
    from ipykernel.kernelapp import IPKernelApp

    threading.Thread(target=warm_up, name="gemma-warm-up", daemon=True).start()
    IPKernelApp.launch_instance(extra_extensions=["jupyter_gemma"])


def warm_up() -> None:
    """Start the model server and let it load its model. What goes wrong is told by the first question."""
    with suppress(GemmaError):
        client = process_gemma().asker.client
        if not client.settings.base_url:
            client.load()


if __name__ == "__main__":
    main()
