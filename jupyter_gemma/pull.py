"""``jupyter gemma pull``: fetch a model from a Hugging Face hub. The only module that goes out to the internet.

A download grows in ``models_dir/NAME.partial`` and is renamed to ``models_dir/NAME`` once every file has the size and
the digest that the hub states (sha256 of a large file, git's blob sha1 of a small one). What an interrupted run has
fetched is checked and continued by the next one; ``hf_hub_download`` would begin each file anew.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from jupyter_gemma.errors import BadCheckpoint, BadOption, GemmaError, ModelError, UnknownModel
from jupyter_gemma.settings import Settings
from jupyter_gemma.store import InstalledModel, find_model
from jupyter_gemma.types import Progress, ProgressCallback

if TYPE_CHECKING:
    import httpx

REPO = re.compile(r"(?P<repo>\w[\w.-]*/(?P<name>\w[\w.-]*))(:(?P<choice>[\w.-]+))?")
# Weights as plain numbers, settings and templates as text: nothing that could run code, and no folders.
SAFE_FILE = re.compile(r"\w[\w.+-]*\.(safetensors|gguf|json|jinja)")
BLOCK = 1 << 20
ORIGIN = "origin.json"


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file of a repository: ``size`` in bytes and the digest that the hub states ("": none)."""

    name: str
    size: int
    sha256: str = ""
    blob_sha1: str = ""

    def new_digest(self) -> Any:
        """A hash object to feed with the content; git puts a header before it."""
        if self.sha256:
            return hashlib.sha256()
        return hashlib.sha1(f"blob {self.size}\0".encode(), usedforsecurity=False)

    @property
    def stated_digest(self) -> str:
        """What the hub says the digest is."""
        return self.sha256 or self.blob_sha1


def pull_model(
    repo: str,
    settings: Settings,
    progress: ProgressCallback,
    endpoint: str | None = None,
    revision: str | None = None,
) -> InstalledModel:
    """Download ``repo`` into ``settings.models_dir``, or continue to; one already there is returned as it is.

    Args:
        repo: ``owner/name``, or ``owner/name:PART`` for the GGUF file with PART in its name.
        settings: where models live.
        progress: told the bytes done of all bytes, first of what is checked, then of what is fetched.
        endpoint: the hub's address; by default ``HF_ENDPOINT``, else huggingface_hub's own.
        revision: branch, tag or commit; by default ``main``.

    Raises:
        UnknownModel: the hub has no such repository or revision.
        BadCheckpoint: a file has another digest than the hub states; that file is deleted.
        BadOption: the name has the wrong form, or several GGUF files fit it.
        ModelError: no network, too little disk, or a licence to accept first.
    """
    match = REPO.fullmatch(repo)
    if match is None:
        raise BadOption(f"{repo!r} does not name a repository.", "Write owner/name, as google/gemma-4-12B-it.")
    name = "-".join(filter(None, (match["name"], match["choice"])))
    target = Path(settings.models_dir) / name
    target.parent.mkdir(parents=True, exist_ok=True)
    with _only_one(target):
        if not target.exists():
            partial = target.with_name(f"{name}.partial")
            _fetch_repo(match["repo"], match["choice"] or "", partial, progress, endpoint, revision)
            partial.rename(target)
    _check_origin(target, match["repo"], revision)
    return find_model(name, settings)


@contextmanager
def _only_one(target: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    try:
        with FileLock(target.with_name(f".{target.name}.lock"), timeout=0):
            yield
    except Timeout as error:
        raise ModelError(f"{target.name} is being pulled by another process.", "Wait for it to end.") from error


def _check_origin(target: Path, repo: str, revision: str | None) -> None:
    path = target / ORIGIN
    origin = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if origin.get("repo") != repo or revision not in (None, origin.get("asked"), origin.get("revision")):
        there = f"{origin['repo']} at {origin['revision']}" if origin else "another model"
        raise ModelError(f"{target} holds {there}.", f"Delete it first: jupyter gemma rm {target.name}")


def _fetch_repo(
    repo: str, choice: str, folder: Path, progress: ProgressCallback, endpoint: str | None, revision: str | None
) -> None:
    import httpx
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise ModelError("HF_HUB_OFFLINE is set, so nothing can be pulled.", "Unset it and run the same command again.")
    base = (endpoint or constants.ENDPOINT).rstrip("/")
    # A compressed answer could not be continued by byte ranges.
    headers = {"Accept-Encoding": "identity"}
    if token := get_token():
        headers["Authorization"] = f"Bearer {token}"
    with httpx.Client(headers=headers, follow_redirects=True, timeout=30) as client, _explained(repo, base):
        answer = client.get(f"{base}/api/models/{repo}/revision/{quote(revision or 'main', safe='')}?blobs=true")
        commit, files = _parse_listing(answer.raise_for_status().content, base)
        files = _choose(files, choice, repo)
        _tidy(files, folder)
        _check_space(files, folder)
        tally = _Tally(progress, sum(file.size for file in files))
        for file in files:
            _fetch_file(client, f"{base}/{repo}/resolve/{commit}/{quote(file.name)}", file, folder, tally)
    origin = {"repo": repo, "asked": revision, "revision": commit, "files": {f.name: f.stated_digest for f in files}}
    (folder / ORIGIN).write_text(json.dumps(origin, indent=2) + "\n", encoding="utf-8")


def _parse_listing(content: bytes, base: str) -> tuple[str, list[RemoteFile]]:
    """The commit and the files of the hub's answer to ``/api/models/REPO/revision/REV?blobs=true``."""
    try:
        listing = json.loads(content)
        return str(listing["sha"]), [_remote_file(entry) for entry in listing["siblings"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{base} does not answer like a Hugging Face hub: {error!r}.", "Check HF_ENDPOINT.") from error


def _remote_file(entry: dict[str, Any]) -> RemoteFile:
    lfs = entry.get("lfs") or {}
    size = int(lfs.get("size") or entry["size"])
    return RemoteFile(entry["rfilename"], size, lfs.get("sha256") or "", entry.get("blobId") or "")


def _choose(files: list[RemoteFile], choice: str, repo: str) -> list[RemoteFile]:
    """The files to fetch: safetensors with their settings, or one GGUF file with its projector."""
    safe = [file for file in files if SAFE_FILE.fullmatch(file.name) and file.name != ORIGIN]
    ggufs = [file for file in safe if file.name.endswith(".gguf")]
    tensors = [file for file in safe if file.name.endswith(".safetensors")]
    texts = [file for file in safe if file not in ggufs and file not in tensors]
    if tensors and not choice:
        return texts + tensors
    projectors = [file for file in ggufs if "mmproj" in file.name.lower()]
    models = [file for file in ggufs if file not in projectors and choice.lower() in file.name.lower()]
    if len(models) == 1:
        return texts + projectors[:1] + models
    if models:
        names = ", ".join(file.name for file in models)
        raise BadOption(f"{repo} has several models: {names}.", f"Name one: jupyter gemma pull {repo}:PART-OF-ITS-NAME")
    wanted = f"GGUF file with {choice!r} in its name" if choice else "safetensors or GGUF file"
    raise UnknownModel(f"{repo} has no {wanted}.", "Other kinds of files (pickles) are never loaded.")


def _tidy(files: list[RemoteFile], folder: Path) -> None:
    """Make ``folder``, without what an interrupted pull of another revision has left in it."""
    folder.mkdir(exist_ok=True)
    names = {file.name for file in files}
    for path in folder.iterdir():
        if path.name not in names:
            path.unlink()


def _check_space(files: list[RemoteFile], folder: Path) -> None:
    there = sum((folder / file.name).stat().st_size for file in files if (folder / file.name).exists())
    needed, free = sum(file.size for file in files) - there, shutil.disk_usage(folder).free
    if needed > free:
        raise ModelError(
            f"The download needs {needed / 1e9:.2f} GB more and {folder} has {free / 1e9:.2f} GB free.",
            "Free some space, or set JUPYTER_GEMMA_MODELS_DIR to a folder on another disk.",
        )


class _Tally:
    """Adds up bytes over all files and reports them."""

    def __init__(self, progress: ProgressCallback, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def add(self, phase: str, count: int) -> None:
        self._done += count
        self._progress(Progress(phase, self._done, self._total))


def _fetch_file(client: httpx.Client, url: str, file: RemoteFile, folder: Path, tally: _Tally) -> None:
    """Bring ``folder/file.name`` to its full size, then check its digest."""
    path = folder / file.name
    digest = file.new_digest()
    if path.exists():
        with path.open("rb") as stream:
            while block := stream.read(BLOCK):
                digest.update(block)
                tally.add(f"checking {file.name}", len(block))
    with path.open("ab") as output:

        def write(block: bytes) -> None:
            output.write(block)
            digest.update(block)
            tally.add(f"downloading {file.name}", len(block))

        while (have := output.tell()) < file.size:
            _fetch_rest(client, url, have, write)
            if output.tell() == have:
                raise _broken_off(file, have)
        size = output.tell()
    if size != file.size or (file.stated_digest and digest.hexdigest() != file.stated_digest):
        path.unlink()
        raise BadCheckpoint(
            f"{file.name} came with another digest than the hub states, so it was deleted.",
            "Run the same command again; the other files are kept.",
        )


def _fetch_rest(client: httpx.Client, url: str, have: int, write: Callable[[bytes], None]) -> None:
    """Pass on what follows the first ``have`` bytes, as far as the connection lasts."""
    import httpx

    try:
        with client.stream("GET", url, headers={"Range": f"bytes={have}-"} if have else {}) as answer:
            answer.raise_for_status()
            # A server that knows no ranges sends the whole file again.
            skip = have if answer.status_code == 200 else 0
            for block in answer.iter_raw(BLOCK):
                fresh = block[skip:]
                skip -= len(block) - len(fresh)
                if fresh:
                    write(fresh)
    except httpx.TransportError:
        # The caller goes on from what came, or gives up when nothing did.
        return


def _broken_off(file: RemoteFile, have: int) -> ModelError:
    return ModelError(
        f"The download of {file.name} broke off at {have:,} of {file.size:,} bytes.",
        "Run the same command again: it goes on from there.",
    )


@contextmanager
def _explained(repo: str, base: str) -> Iterator[None]:
    """Turn what httpx raises into our errors."""
    import httpx

    try:
        yield
    except httpx.HTTPStatusError as error:
        raise _refused(error.response.status_code, repo, base) from error
    except httpx.HTTPError as error:
        fix = "Check the connection, or copy the model's folder into JUPYTER_GEMMA_MODELS_DIR by hand."
        raise ModelError(f"{base} cannot be reached: {error}.", fix) from error


def _refused(status: int, repo: str, base: str) -> GemmaError:
    if status in (401, 404):
        return UnknownModel(
            f"{base} has no repository or revision {repo!r}, or it is private.",
            "Check the name; for a private one log in first: hf auth login",
        )
    if status == 403:
        return ModelError(f"{repo} asks for consent first.", f"Accept its terms at {base}/{repo}, then: hf auth login")
    return ModelError(f"{base} answered with HTTP status {status}.", "Run the same command again later.")
