"""The server's log: rotated, bounded, private, and where everything goes that the process prints."""

import subprocess
import sys
from pathlib import Path

import pytest

from jupyter_gemma.server import log

WRITER = """
import logging, os, pathlib, sys
from jupyter_gemma.server import log
log.LOG_BYTES = 2000
log.set_up(False, pathlib.Path(sys.argv[1]))
logger = logging.getLogger("jupyter_gemma.test")
for number in range(200):
    logger.info("line %d", number)
    print("printed", number, flush=True)
    os.write(2, f"written {number}\\n".encode())
log.prompts.debug("a secret question")
"""


@pytest.fixture
def written(tmp_path: Path) -> list[Path]:
    """The files of a log that is much longer than one file may be, the newest first."""
    done = subprocess.run([sys.executable, "-c", WRITER, str(tmp_path / "gemma.log")], capture_output=True, check=True)
    assert done.stdout + done.stderr == b""
    return sorted(tmp_path.iterdir())


def test_a_long_log_is_rotated_and_bounded(written: list[Path]) -> None:
    assert [path.name for path in written] == ["gemma.log", "gemma.log.1", "gemma.log.2", "gemma.log.3"]
    assert log.LOG_FILES == 3
    assert all(path.stat().st_size <= 2100 for path in written)
    text = "".join(path.read_text() for path in reversed(written))
    kept = [int(line.split()[-1]) for line in text.splitlines() if "INFO jupyter_gemma.test: line" in line]
    assert kept == list(range(kept[0], 200))
    assert 0 < kept[0] < 199


def test_what_is_printed_goes_along(written: list[Path]) -> None:
    for path in written:
        lines = path.read_text().splitlines()
        assert any(line.startswith("printed") for line in lines)
        assert any(line.startswith("written") for line in lines)
    assert written[0].read_text().splitlines()[-2:] == ["printed 199", "written 199"]


def test_every_file_is_private_and_without_questions(written: list[Path]) -> None:
    assert {path.stat().st_mode & 0o777 for path in written} == {0o600}
    assert not any("secret" in path.read_text() for path in written)
