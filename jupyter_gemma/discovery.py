"""Where the model server of this user and machine is, and how it gets started.

A running server announces itself in ``<runtime_dir>/jupyter-gemma-<host>.json``, readable by its owner only. The file
is believed if its process lives and the server behind its address confirms it. Starters hold a lock file, so that
two of them make one server; the operating system drops the lock of a starter that dies.
"""

from __future__ import annotations

import http.client
import json
import os
import platform
import re
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from jupyter_gemma.errors import ServerError, ServerLost, ServerNotRunning, ServerStartFailed
from jupyter_gemma.settings import ENV_PREFIX, Settings
from jupyter_gemma.types import Progress, ProgressCallback

POLL_SECONDS = 0.05
ANSWER_SECONDS = 10.0
LOG_LINES = 15
# They say how to reach another server; a server that is being started must not show them in its environment.
CLIENT_ONLY = ("base_url", "api_key", "start_server", "start_timeout")


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """A server's entry in its file: process, address, secret, version, and Unix time of its start."""

    pid: int
    url: str
    token: str = field(repr=False)
    version: str
    started: float


# -- the file ----------------------------------------------------------------------------------------------------


def server_file(settings: Settings) -> Path:
    """The file in which the server of this machine announces itself (runtime folders may be shared by machines)."""
    return Path(settings.runtime_dir) / f"jupyter-gemma-{platform.node()}.json"


def log_file(settings: Settings) -> Path:
    """Where a server started in the background writes; what the one before it wrote has ``.1`` after the name."""
    return server_file(settings).with_suffix(".log")


def new_token() -> str:
    """A secret of 256 bits."""
    return secrets.token_urlsafe(32)


def write_server_file(settings: Settings, info: ServerInfo) -> None:
    """Announce ``info``. The file appears complete and private, or not at all."""
    path = server_file(settings)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    scratch = path.with_suffix(f".{secrets.token_hex(8)}")
    with _open_private(scratch, os.O_EXCL) as stream:
        json.dump(asdict(info), stream)
    scratch.replace(path)


def read_server_file(settings: Settings) -> ServerInfo | None:
    """What the file says; None if there is none, or nothing readable in it.

    Raises:
        ServerError: the file is a link, belongs to somebody else, or others may read or write it.
    """
    path = server_file(settings)
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ServerError(f"{path} cannot be used: {error.strerror}.", "Delete it.") from error
    with open(descriptor, encoding="utf-8") as stream:  # noqa: PTH123 - a descriptor, so that what is checked is what is read
        _check_private(stream, path)
        try:
            return ServerInfo(**json.load(stream))
        except (ValueError, TypeError):
            return None


def remove_server_file(settings: Settings, info: ServerInfo) -> None:
    """Delete the file if it still announces ``info``."""
    if read_server_file(settings) == info:
        server_file(settings).unlink(missing_ok=True)


def _open_private(path: Path, flags: int) -> IO[str]:
    flags |= os.O_WRONLY | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    return open(os.open(path, flags, 0o600), "w", encoding="utf-8")  # noqa: PTH123 - open() of a descriptor


def _check_private(stream: IO[str], path: Path) -> None:
    if os.name == "nt":
        return  # the folder is in the user's profile, which Windows keeps private
    status = os.fstat(stream.fileno())
    if status.st_uid != os.getuid():
        raise ServerError(f"{path} belongs to another user.", "Delete it, or set runtime_dir to a folder of your own.")
    if status.st_mode & 0o077:
        raise ServerError(f"Other users can read {path}.", "Delete it: the next call starts a new server.")


# -- the server behind it ----------------------------------------------------------------------------------------


def running_server(settings: Settings) -> ServerInfo | None:
    """The server that the file names, if it lives and confirms it.

    Raises:
        ServerError: see :func:`read_server_file`.
        ServerLost: the process lives but does not answer.
    """
    info = read_server_file(settings)
    if info is None or not _alive(info.pid):
        return None
    return info if _confirms(info) else None


def _alive(pid: int) -> bool:
    if os.name == "nt":
        return True  # os.kill would end the process; asking the server tells as well
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _confirms(info: ServerInfo) -> bool:
    """Whether the server at the address accepts the token and is the process of the file, not a later one."""
    try:
        status = _ask(info, "GET", "/gemma/status")
        return bool(status.get("pid") == info.pid and status.get("started") == info.started)
    except TimeoutError as error:
        raise ServerLost(
            f"The model server (process {info.pid}) does not answer.", f"Wait, or end it: kill {info.pid}"
        ) from error
    except (OSError, http.client.HTTPException, ValueError):
        return False


def _ask(info: ServerInfo, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What the server answers; ValueError if that is no JSON object."""
    address = urlsplit(info.url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=ANSWER_SECONDS)
    try:
        headers = {"Authorization": f"Bearer {info.token}"}
        connection.request(method, path, json.dumps(body) if body else None, headers)
        answer = json.loads(connection.getresponse().read())
    finally:
        connection.close()
    if not isinstance(answer, dict):
        raise ValueError("no JSON object")  # noqa: TRY004 - like the other answers that are none
    return answer


# -- starting one ------------------------------------------------------------------------------------------------


def find_or_start(settings: Settings, on_progress: ProgressCallback | None = None) -> ServerInfo:
    """The running server, else a new one; one of an older version is replaced as soon as it is idle.

    Raises:
        ServerNotRunning: there is none and ``settings.start_server`` is False.
        ServerStartFailed: the new one did not come up; the end of its log is quoted.
        ServerError, ServerLost: see :func:`running_server`.
    """
    found = running_server(settings)
    if found and not (settings.start_server and is_older(found.version)):
        return found
    if not settings.start_server:
        raise ServerNotRunning("No model server is running, and start_server is off.", "Run: jupyter gemma serve")
    report = on_progress or (lambda progress: None)
    deadline = time.monotonic() + settings.start_timeout
    with _start_lock(settings, deadline, report):
        found = running_server(settings)
        if found and is_older(found.version) and _retire(found, deadline, report):
            found = None
        return found or _start(settings, deadline, report)


def is_older(version: str) -> bool:
    """Whether a server of ``version`` is older than this client."""
    from importlib.metadata import version as installed

    return _release(version) < _release(installed("jupyter-gemma"))


def _release(version: str) -> tuple[int, ...]:
    """ "1.10.0rc1" -> (1, 10, 0); what comes after a letter is not compared."""
    return tuple(int(number) for number in re.findall(r"\d+", re.split("[a-z+]", version.lower())[0]))


def _retire(info: ServerInfo, deadline: float, report: ProgressCallback) -> bool:
    """End an older server once it is idle; whether it ended. One that is busy until the deadline is used as it is."""
    while time.monotonic() < deadline:
        try:
            state = _ask(info, "POST", "/gemma/stop", {"if_idle": True}).get("state")
        except (OSError, http.client.HTTPException, ValueError):
            return not _alive(info.pid)
        while state == "stopping" and _alive(info.pid) and _confirms(info):
            time.sleep(POLL_SECONDS)
        if state == "stopping":
            return True
        report(Progress(f"waiting for the answers of the older model server {info.version}"))
        time.sleep(POLL_SECONDS)
    return False


@contextmanager
def _start_lock(settings: Settings, deadline: float, report: ProgressCallback) -> Iterator[None]:
    path = server_file(settings).with_suffix(".lock")
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _open_private(path, 0) as stream:
        while not _try_lock(stream):
            if time.monotonic() > deadline:
                raise ServerStartFailed(
                    "Another process has been starting the model server for too long.", f"See {path}."
                )
            report(Progress("waiting for the model server that another process is starting"))
            time.sleep(POLL_SECONDS)
        yield


def _try_lock(stream: IO[str]) -> bool:
    """Lock the open file, which closing it ends."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _start(settings: Settings, deadline: float, report: ProgressCallback) -> ServerInfo:
    server_file(settings).unlink(missing_ok=True)
    process = _launch(settings)
    try:
        info = _wait(settings, process, deadline, report)
    except BaseException:
        process.kill()
        process.wait()
        raise
    # The server outlives its starter; should it die earlier, this keeps it from staying as a zombie.
    threading.Thread(target=process.wait, daemon=True, name="jupyter-gemma-reaper").start()
    return info


def _launch(settings: Settings) -> subprocess.Popen[bytes]:
    log = log_file(settings)
    if log.exists():
        log.replace(log.with_suffix(".log.1"))
    options: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        options = {"creationflags": subprocess.DETACHED_PROCESS | subprocess.CREATE_NEW_PROCESS_GROUP}
    with _open_private(log, os.O_EXCL) as stream:
        return subprocess.Popen(
            [sys.executable, "-m", "jupyter_gemma", "serve", "--log", str(log.absolute())],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            env=_environment(settings),
            cwd=settings.runtime_dir,  # not the notebook's folder, whose random.py would hide Python's own
            **options,
        )


def _environment(settings: Settings) -> dict[str, str]:
    """This process's environment, with the settings of this process in it."""
    ours = {key: getattr(settings, key) for key in Settings.class_trait_names(config=True) if key not in CLIENT_ONLY}
    ours.update({key: str(Path(ours[key]).absolute()) for key in ("models_dir", "runtime_dir")})
    hidden = {f"{ENV_PREFIX}{key.upper()}" for key in CLIENT_ONLY}
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    return {**kept, **{f"{ENV_PREFIX}{key.upper()}": str(value) for key, value in ours.items()}}


def _wait(
    settings: Settings, process: subprocess.Popen[bytes], deadline: float, report: ProgressCallback
) -> ServerInfo:
    started = time.monotonic()
    while time.monotonic() < deadline:
        info = read_server_file(settings)
        if info is not None and _confirms(info):
            return info
        if process.poll() is not None:
            raise _start_failed(settings, f"The model server ended with exit status {process.returncode}.")
        report(Progress("starting the model server", int(time.monotonic() - started)))
        time.sleep(POLL_SECONDS)
    raise _start_failed(settings, f"The model server did not answer within {settings.start_timeout:g} seconds.")


def _start_failed(settings: Settings, message: str) -> ServerStartFailed:
    log = log_file(settings)
    with suppress(OSError):
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
        message = "\n".join([message, "The end of its log:", *(f"    {line}" for line in lines)])
    return ServerStartFailed(message, f"\nThe whole log is {log}.")
