"""Plugins for all tests. (pytest takes them from the topmost conftest only.)"""

# `-p no:pytest_jupyter.jupyter_server` leaves it out: its event loop and Playwright's do not go together.
pytest_plugins = ("pytest_jupyter.jupyter_server",)
