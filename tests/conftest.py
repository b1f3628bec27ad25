"""Plugins for all tests (pytest takes them from the topmost conftest only), and the browser that some need."""

import os
import shutil

import pytest

# `-p no:pytest_jupyter.jupyter_server` leaves it out: its event loop and Playwright's do not go together.
pytest_plugins = ("pytest_jupyter.jupyter_server",)


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of Chromium; absent, the test is skipped, or fails where GEMMA_REQUIRE_ALL is set."""
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        reason = "needs Chromium on the path (Debian: apt install chromium)"
        pytest.fail(reason) if os.environ.get("GEMMA_REQUIRE_ALL") else pytest.skip(reason)
    return program
