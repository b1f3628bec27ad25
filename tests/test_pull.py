"""``pull`` against a local stand-in for the hub: digests, ranges, interrupts, refusals."""

import hashlib
import json
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from jupyter_gemma.errors import BadCheckpoint, BadOption, ModelError, UnknownModel
from jupyter_gemma.pull import pull_model
from jupyter_gemma.settings import Settings, load_settings
from jupyter_gemma.store import find_model, list_models
from jupyter_gemma.types import Progress

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings({"models_dir": str(tmp_path / "models")}, {})


@dataclass
class Hub:
    """One repository, ``owner/tiny``, and how it misbehaves. ``ranges`` holds the Range header of each GET."""

    files: dict[str, bytes]
    url: str = ""
    cut_after: dict[str, int] = field(default_factory=dict)  # name -> bytes before the connection drops, once
    wrong: dict[str, bytes] = field(default_factory=dict)  # name -> what is sent instead
    knows_ranges: bool = True
    status: int = 200
    ranges: dict[str, list[str]] = field(default_factory=dict)

    def listing(self) -> bytes:
        siblings = []
        for name, content in self.files.items():
            entry = {"rfilename": name, "size": len(content)}
            if name.endswith((".safetensors", ".gguf")):
                entry["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 9}
            else:
                blob = b"blob %d\0" % len(content) + content
                entry["blobId"] = hashlib.sha1(blob, usedforsecurity=False).hexdigest()
            siblings.append(entry)
        return json.dumps({"id": "owner/tiny", "sha": COMMIT, "siblings": siblings}).encode()


def make_handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if hub.status != 200:
                return self.answer(hub.status, b"{}")
            if self.path in (f"/api/models/owner/tiny/revision/{rev}?blobs=true" for rev in ("main", "v1", COMMIT)):
                return self.answer(200, hub.listing())
            prefix = f"/owner/tiny/resolve/{COMMIT}/"
            name = self.path.removeprefix(prefix)
            if self.path.startswith(prefix) and name in hub.files:
                return self.send_part(name, hub.wrong.get(name, hub.files[name]))
            return self.answer(404, b"{}")

        def send_part(self, name: str, content: bytes) -> None:
            asked = self.headers.get("Range", "")
            hub.ranges.setdefault(name, []).append(asked)
            start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and hub.knows_ranges else 0
            cut = hub.cut_after.pop(name, None)
            body = content[start:] if cut is None else content[start : start + cut]
            self.answer(206 if start else 200, body, length=len(content) - start)

        def answer(self, status: int, body: bytes, length: int | None = None) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body) if length is None else length))
            self.end_headers()
            self.wfile.write(body)
            self.close_connection = True

        def log_message(self, *_: object) -> None:
            """Stay silent."""

    return Handler


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no-token"))
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    hub = Hub(
        {
            "config.json": b'{"model_type": "gemma4_unified", "vision_config": {"a": 1}}',
            "chat_template.jinja": b"{{ messages }}",
            "model-1.safetensors": bytes(range(256)) * 12_000,
            "model-2.safetensors": bytes(reversed(range(256))) * 5_000,
            "pytorch_model.bin": b"never",
            "weights.pkl": b"never",
            "run.py": b"never",
            "../escape.json": b"never",
            "sub/folder.json": b"never",
            ".hidden.json": b"never",
        }
    )
    server = ThreadingHTTPServer(("127.0.0.1", 0), make_handler(hub))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    yield hub
    server.shutdown()
    thread.join()
    server.server_close()


WANTED = ["chat_template.jinja", "config.json", "model-1.safetensors", "model-2.safetensors"]


def pull(hub: Hub, settings: Settings, repo: str = "owner/tiny", progress=lambda _: None, **options: str):
    return pull_model(repo, settings, progress, endpoint=hub.url, **options)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_pull_brings_the_safe_files_and_reports_bytes(hub: Hub, settings: Settings) -> None:
    seen: list[Progress] = []
    model = pull(hub, settings, progress=seen.append)
    total = sum(len(hub.files[name]) for name in WANTED)
    assert (model.name, model.card.modalities, model.card.instruct) == ("tiny", ("text", "image"), True)
    assert names(model.path) == sorted([*WANTED, "origin.json"])
    assert all((model.path / name).read_bytes() == hub.files[name] for name in WANTED)
    assert [step.done for step in seen] == sorted(step.done for step in seen)
    assert (seen[-1].done, seen[-1].total) == (total, total)
    assert json.loads((model.path / "origin.json").read_text())["revision"] == COMMIT
    assert find_model("tiny", settings) == model


def test_pull_again_fetches_nothing_and_another_origin_is_refused(hub: Hub, settings: Settings) -> None:
    first = pull(hub, settings, revision="v1")
    hub.status = 500
    assert pull(hub, settings) == pull(hub, settings, revision=COMMIT) == first
    with pytest.raises(ModelError, match=r"holds owner/tiny at 0123.*jupyter gemma rm tiny"):
        pull(hub, settings, "other/tiny")
    with pytest.raises(ModelError, match="jupyter gemma rm tiny"):
        pull(hub, settings, revision="v2")


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_a_dropped_connection_is_continued(hub: Hub, settings: Settings, knows_ranges: bool) -> None:
    hub.knows_ranges = knows_ranges
    hub.cut_after["model-1.safetensors"] = 1_500_000
    model = pull(hub, settings)
    assert (model.path / "model-1.safetensors").read_bytes() == hub.files["model-1.safetensors"]
    first, second = hub.ranges["model-1.safetensors"]
    assert first == ""
    assert 0 < int(second.removeprefix("bytes=").rstrip("-")) <= 1_500_000


def test_an_interrupted_pull_goes_on_where_it_stopped(hub: Hub, settings: Settings) -> None:
    def interrupt(step: Progress) -> None:
        if step.done > 1_200_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull(hub, settings, progress=interrupt)
    partial = Path(settings.models_dir) / "tiny.partial"
    have = (partial / "model-1.safetensors").stat().st_size
    assert 0 < have < len(hub.files["model-1.safetensors"])
    with pytest.raises(UnknownModel):
        find_model("tiny", settings)
    (partial / "stray.json").write_text("of another revision")
    model = pull(hub, settings)
    assert hub.ranges["model-1.safetensors"] == ["", f"bytes={have}-"]
    assert hub.ranges["config.json"] == [""], "a finished file is checked, not fetched again"
    assert names(model.path) == sorted([*WANTED, "origin.json"])
    assert not partial.exists()


@pytest.mark.parametrize("name", ["model-2.safetensors", "config.json"])
def test_a_wrong_digest_deletes_that_file_only(hub: Hub, settings: Settings, name: str) -> None:
    hub.wrong[name] = b"?" + hub.files[name][1:]
    with pytest.raises(BadCheckpoint, match=f"{name} came with another digest"):
        pull(hub, settings)
    partial = Path(settings.models_dir) / "tiny.partial"
    assert not (partial / name).exists()
    hub.wrong.clear()
    kept = names(partial)
    pull(hub, settings)
    assert all(hub.ranges[other] == [""] for other in kept)
    assert hub.ranges[name] == ["", ""]


def test_too_much_content_is_a_wrong_file(hub: Hub, settings: Settings) -> None:
    hub.wrong["config.json"] = hub.files["config.json"] + b" " * 9
    with pytest.raises(BadCheckpoint, match=r"config\.json"):
        pull(hub, settings)


def test_a_server_that_sends_nothing_more_is_given_up(hub: Hub, settings: Settings) -> None:
    hub.wrong["model-2.safetensors"] = hub.files["model-2.safetensors"][:1000]
    with pytest.raises(ModelError, match=r"broke off at 1,000 of 1,280,000 bytes.*goes on from there"):
        pull(hub, settings)


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [
        (401, UnknownModel, "or it is private.*hf auth login"),
        (403, ModelError, "asks for consent.*Accept its terms"),
        (404, UnknownModel, "no repository or revision"),
        (500, ModelError, "HTTP status 500"),
    ],
)
def test_refusals_are_explained(hub: Hub, settings: Settings, status: int, kind: type[ModelError], words: str) -> None:
    hub.status = status
    with pytest.raises(kind, match=words) as caught:
        pull(hub, settings)
    assert type(caught.value) is kind
    assert hub.url in str(caught.value)


def test_unknown_repository_and_revision(hub: Hub, settings: Settings) -> None:
    with pytest.raises(UnknownModel, match="owner/none"):
        pull(hub, settings, "owner/none")
    with pytest.raises(UnknownModel):
        pull(hub, settings, revision="../../x")
    assert list_models(settings)[0].name == "demo"


def test_no_network_is_said_plainly(hub: Hub, settings: Settings) -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        hub.url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        with pytest.raises(ModelError, match=r"cannot be reached.*Check the connection"):
            pull(hub, settings)


def test_hub_offline_is_honoured(hub: Hub, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE"):
        pull(hub, settings)
    assert not hub.ranges


def test_a_page_that_is_no_hub(hub: Hub, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "listing", lambda: b"<html>Sign in to the guest network</html>")
    with pytest.raises(ModelError, match="does not answer like a Hugging Face hub"):
        pull(hub, settings)


def test_disk_space_is_checked_before(hub: Hub, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1_000_000})())
    with pytest.raises(ModelError, match=r"needs 0\.00 GB more.*has 0\.00 GB free.*MODELS_DIR"):
        pull(hub, settings)
    assert not hub.ranges


def test_one_of_several_gguf_files_must_be_named(hub: Hub, settings: Settings) -> None:
    hub.files = {"a-Q4_0.gguf": b"4", "a-Q8_0.gguf": b"8", "mmproj-F16.gguf": b"p", "x.md": b"never"}
    with pytest.raises(BadOption, match=r"a-Q4_0.gguf, a-Q8_0.gguf.*owner/tiny:"):
        pull(hub, settings)
    with pytest.raises(UnknownModel, match="no GGUF file with 'Q5' in its name"):
        pull(hub, settings, "owner/tiny:Q5")
    pulled = pull(hub, settings, "owner/tiny:q8_0")
    assert pulled.name == "tiny-q8_0"
    assert names(pulled.path) == ["a-Q8_0.gguf", "mmproj-F16.gguf", "origin.json"]


def test_a_repository_of_pickles_is_refused(hub: Hub, settings: Settings) -> None:
    hub.files = {"config.json": b"{}", "pytorch_model.bin": b"x"}
    with pytest.raises(UnknownModel, match="no safetensors or GGUF file"):
        pull(hub, settings)


@pytest.mark.parametrize("repo", ["tiny", "a/b/c", "../tiny", "owner/..", "", "owner/tiny:"])
def test_malformed_names(hub: Hub, settings: Settings, repo: str) -> None:
    with pytest.raises(BadOption, match="owner/name"):
        pull(hub, settings, repo)


def test_two_pulls_of_one_model_do_not_mix(hub: Hub, settings: Settings) -> None:
    def second_pull(_: Progress) -> None:
        with pytest.raises(ModelError, match="pulled by another process"):
            pull(hub, settings)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull(hub, settings, progress=second_pull)
