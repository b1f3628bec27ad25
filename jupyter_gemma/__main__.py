"""``python -m jupyter_gemma`` is ``jupyter gemma``."""

import sys

from jupyter_gemma.cli import main

sys.exit(main())
