"""The command line: what it prints, what it exits with, and that it never shows a traceback."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jupyter_gemma import doctor
from jupyter_gemma import pull as pull_module
from jupyter_gemma.cli import _ProgressLine, main
from jupyter_gemma.client import Client
from jupyter_gemma.discovery import log_file, read_server_file, running_server
from jupyter_gemma.errors import UnknownModel
from jupyter_gemma.settings import Settings, load_settings
from jupyter_gemma.store import InstalledModel
from jupyter_gemma.types import Message, ModelCard, Progress, ProgressCallback, Request, TextPart


@pytest.fixture(autouse=True)
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """State in a temporary folder and the echo engine; a server left behind is killed."""
    for name in ("RUNTIME", "DATA", "CONFIG"):
        monkeypatch.setenv(f"JUPYTER_{name}_DIR", str(tmp_path / name.lower()))
    monkeypatch.setenv("JUPYTER_GEMMA_ENGINE", "echo")
    values = load_settings()
    yield values
    if (info := read_server_file(values)) is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(info.pid, signal.SIGKILL)


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a command."""
    try:
        status = main(words)
    except SystemExit as leave:  # argparse ends by itself
        status = int(leave.code or 0)
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return status, out, err


def test_the_life_of_a_server(capsys: pytest.CaptureFixture[str], settings: Settings) -> None:
    assert run(capsys, "status") == (0, "state: stopped\n", "")
    assert run(capsys, "unload")[1] == "No model server is running.\n"
    status, out, err = run(capsys, "serve", "--detach")
    info = read_server_file(settings)
    assert info is not None
    assert (status, out) == (0, f"The model server runs at {info.url} (process {info.pid}).\n")
    assert "starting the model server" in err
    assert run(capsys, "serve", "--detach")[1] == out
    status, out, err = run(capsys, "load", "echo-slow")
    assert (status, out) == (0, "echo-slow is loaded.\n")
    assert "loading echo-slow" in err
    out = run(capsys, "status")[1]
    assert "state: ready\nmodel: echo-slow\n" in out
    assert f"pid: {info.pid}" in out
    assert run(capsys, "unload")[1] == "No model is loaded now.\n"
    assert run(capsys, "stop")[1] == "The model server ends.\n"


def test_the_log_tells_what_was_asked_for_but_not_what_was_said(
    capsys: pytest.CaptureFixture[str], settings: Settings
) -> None:
    assert run(capsys, "logs")[0] == 1
    run(capsys, "serve", "--detach")
    question = Request((Message("user", (TextPart("a secret question"),)),))
    list(Client(settings).stream(question))
    status, out, _ = run(capsys, "logs", "-n", "3")
    assert status == 0
    assert len(out.splitlines()) == 3
    assert "/v1/chat/completions echo: stop after" in out
    assert "tokens: 3 read (0 of them known), 3 written" in out
    assert "secret" not in run(capsys, "logs", "-n", "1000")[1]
    run(capsys, "stop")


def test_the_log_is_followed_into_the_file_that_a_rotation_begins(settings: Settings) -> None:
    path = log_file(settings)
    path.parent.mkdir()
    path.write_text("first\n")
    command = [sys.executable, "-m", "jupyter_gemma", "logs", "--follow"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "first\n"
        with path.open("a") as old:
            path.rename(path.with_suffix(".log.1"))
            old.write("second\n")
        path.write_text("third\n")
        assert [process.stdout.readline() for _ in range(2)] == ["second\n", "third\n"]
        process.terminate()


def test_prompts_are_logged_where_that_is_asked_for(capsys: pytest.CaptureFixture[str], settings: Settings) -> None:
    run(capsys, "serve", "--detach", "--log-prompts", "true")
    list(Client(settings).stream(Request((Message("user", (TextPart("a secret question"),)),))))
    assert "a secret question" in run(capsys, "logs")[1]
    run(capsys, "stop")


def test_the_doctor_finds_nothing_or_says_the_way_out(
    capsys: pytest.CaptureFixture[str], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "DISK_BYTES", 1)
    monkeypatch.setattr(doctor, "_torch", lambda settings: iter(()))
    status, out, _ = run(capsys, "doctor")
    assert status == 0
    assert "ok   server: none runs" in out
    assert "ok   model demo:" in out
    Path(settings.runtime_dir).mkdir(exist_ok=True)
    Path(settings.runtime_dir).chmod(0o777)
    monkeypatch.setattr(doctor, "DISK_BYTES", 10**18)
    status, out, err = run(capsys, "doctor")
    assert status == 1
    assert f"BAD  runtime folder: {settings.runtime_dir} others can write there\n     chown and chmod 700" in out
    assert "BAD  disk:" in out
    assert err == "2 things to look at.\n"


def test_the_doctor_tells_a_model_that_is_still_to_be_joined(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    later = InstalledModel("later", tmp_path / "later", ModelCard("later"), 1)
    monkeypatch.setattr(doctor, "list_models", lambda settings: [later])
    before = next(doctor._models(settings))
    assert (before.well, before.seen) == (True, f"{later.path} will be made from its package at its first use")
    later.path.mkdir()
    assert next(doctor._models(settings)).seen == str(later.path)


def test_the_doctor_looks_at_torch_and_the_kernels(settings: Settings) -> None:
    found = {finding.name: finding for finding in doctor._torch(settings)}
    assert set(found) == {"torch", "compute kernels", "memory"}
    assert "threads" in found["torch"].seen
    assert all(finding.well or finding.fix for finding in found.values())


def test_the_doctor_survives_what_it_finds(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(settings: Settings) -> Iterator[Any]:
        raise ImportError("no torch")

    monkeypatch.setattr(doctor, "_torch", broken)
    last = list(doctor.examine(settings))[-1]
    assert (last.well, last.seen) == (False, "ImportError: no torch")


def test_a_second_server_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "serve", "--detach")
    status, _, err = run(capsys, "serve")
    assert status == 1
    assert "runs already" in err
    assert "jupyter gemma stop" in err


def test_serve_in_the_foreground_until_ctrl_c(settings: Settings) -> None:
    command = [sys.executable, "-m", "jupyter_gemma", "serve"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        next(line for line in process.stderr if "startup complete" in line)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert read_server_file(settings) is None


def test_a_failure_is_a_message_and_the_way_out(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "load", "nope")
    assert (status, out) == (1, "")
    assert err.endswith("There is no echo model 'nope'.\nThere are echo, echo-slow, echo-broken, echo-base.\n")
    status, _, err = run(capsys, "load", "echo-broken")
    assert (status, err.splitlines()[-2:]) == (
        1,
        ["The model echo-broken is broken on purpose.", "Use the model echo."],
    )


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ((), "COMMAND"),
        (("fly",), "fly"),
        (("status", "--colour", "red"), "--colour"),
        (("serve", "--port", "abc"), "port"),
        (("serve", "--device", "tpu"), "device"),
        (("serve", "--mod", "demo"), "--mod"),
        (("rm",), "name"),
    ],
)
def test_wrong_usage_is_status_2(capsys: pytest.CaptureFixture[str], words: tuple[str, ...], named: str) -> None:
    status, out, err = run(capsys, *words)
    assert (status, out) == (2, "")
    assert named in err


def test_a_wrong_variable_is_wrong_usage_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUPYTER_GEMMA_PROT", "80")
    status, _, err = run(capsys, "status")
    assert status == 2
    assert "Did you mean port?" in err


def test_every_setting_is_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("serve", "status", "stop", "logs", "doctor", "load", "unload", "models", "pull", "rm"):
        status, out, _ = run(capsys, command, "--help")
        assert status == 0
        for name in Settings.class_trait_names(config=True):
            assert f"--{name.replace('_', '-')} VALUE" in out


def test_an_option_wins_over_the_environment(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUPYTER_GEMMA_RUNTIME_DIR", str(tmp_path / "variable"))
    option = str(tmp_path / "option")
    run(capsys, "serve", "--detach", "--runtime-dir", option, "--max-memory", '{"cpu": "6GB"}')
    found = load_settings({"runtime_dir": option})
    assert running_server(found)
    assert not (tmp_path / "variable").exists()
    run(capsys, "stop", "--runtime-dir", option)


def test_models_are_a_table_with_the_default_marked(capsys: pytest.CaptureFixture[str], settings: Settings) -> None:
    folder = Path(settings.models_dir) / "mine"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(bytes(2000))
    (folder / "card.json").write_text('{"name": "mine", "modalities": ["text", "image"], "notice": "A test."}')
    status, out, _ = run(capsys, "models", "--model", "mine")
    assert status == 0
    header, *rows = out.splitlines()
    assert header.split() == ["NAME", "SIZE", "TAKES"]
    (row,) = [row for row in rows if " mine " in row]
    assert row.split() == ["*", "mine", "2.07", "kB", "text,", "image", "A", "test."]
    assert [row[0] for row in rows].count("*") == 1


def test_rm_deletes_a_model(capsys: pytest.CaptureFixture[str], settings: Settings) -> None:
    folder = Path(settings.models_dir) / "mine"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(bytes(2000))
    assert run(capsys, "rm", "mine")[1] == "mine is deleted (2 kB).\n"
    assert not folder.exists()
    assert run(capsys, "rm", "mine")[0] == 1


def test_pull_shows_progress_and_fails_with_a_message(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[tuple[str, str | None]] = []

    def fake(repo: str, settings: Settings, progress: ProgressCallback, revision: str | None = None) -> Any:
        asked.append((repo, revision))
        if repo == "no/such":
            raise UnknownModel("The hub has no no/such.", "Check the name.")
        progress(Progress("downloading", 1, 4))
        return InstalledModel("m", tmp_path, ModelCard("m"), 12_345_678_901)

    monkeypatch.setattr(pull_module, "pull_model", fake)
    assert run(capsys, "pull") == (0, "m is installed (12.3 GB).\n", "downloading\n")
    assert run(capsys, "pull", "no/such", "--revision", "v1") == (1, "", "The hub has no no/such.\nCheck the name.\n")
    assert asked == [("google/gemma-4-12B-it", None), ("no/such", "v1")]


def test_progress_in_a_terminal_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with _ProgressLine() as report:
        for progress in (Progress("starting a long thing"), Progress("loading", 1, 4), Progress("loading", 1, 4)):
            report(progress)
    assert capsys.readouterr().err == "\rstarting a long thing\rloading  25 %        \n"


def test_the_command_line_starts_without_the_engine() -> None:
    code = (
        "import sys; from jupyter_gemma.cli import main; main(['models']); main(['status'])\n"
        "print([name for name in ('torch', 'fastapi', 'transformers', 'httpx') if name in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.splitlines()[-1] == "[]"
