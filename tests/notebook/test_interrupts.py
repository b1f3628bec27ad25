"""Interrupting the kernel at every stage, on a real kernel and server: waiting, loading, reading, streaming.

The echo engine's slow model stands for each but reading, which only the real engine does; afterwards the server is
free at once.
"""

import json
import os
import subprocess
import sys
import threading
import time

import pytest
from jupyter_client.manager import start_new_kernel

from jupyter_gemma.client import Client
from jupyter_gemma.settings import load_settings
from jupyter_gemma.types import Message, Request, TextPart

LONG = " ".join(f"word{number}" for number in range(400))


@pytest.fixture
def kernel(tmp_path, monkeypatch, request):
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    for name, value in getattr(request, "param", {"ENGINE": "echo"}).items():
        monkeypatch.setenv(f"JUPYTER_GEMMA_{name}", value)
    manager, client = start_new_kernel(kernel_name="python3", env=dict(os.environ), startup_timeout=60)
    run(client, "%load_ext jupyter_gemma")
    yield manager, client
    client.stop_channels()
    manager.shutdown_kernel(now=True)
    manager.context.destroy(linger=0)
    subprocess.run([sys.executable, "-m", "jupyter_gemma", "stop"], check=True, capture_output=True)


def run(client, source: str) -> list[dict]:
    found: list[dict] = []
    client.execute_interactive(source, output_hook=found.append, timeout=60)
    return found


def interrupted(kernel, source: str, seen) -> dict:
    """Run ``source``, interrupt it at the first message that ``seen`` accepts; its error."""
    manager, client = kernel
    found: list[dict] = []
    done = threading.Event()

    def hook(message):
        found.append(message)
        if not done.is_set() and seen(message):
            done.set()
            manager.interrupt_kernel()

    reply = client.execute_interactive(source, output_hook=hook, timeout=60)["content"]
    assert done.is_set(), found
    assert reply["status"] == "error"
    return {"error": reply["ename"], "shown": found}


def text_of(message) -> str:
    content = message["content"]
    return content.get("data", {}).get("text/plain", "") + content.get("text", "")


def is_free() -> bool:
    status = Client(load_settings()).status()
    return not status.get("active") and not status.get("waiting")


def free_soon() -> None:
    deadline = time.monotonic() + 5
    while not is_free():
        assert time.monotonic() < deadline, Client(load_settings()).status()
        time.sleep(0.02)


def test_while_the_server_starts_and_the_model_loads(kernel):
    stopped = interrupted(kernel, f"%gemma -m echo-slow {LONG}", lambda message: "loading" in text_of(message))
    assert stopped["error"] in ("Stopped", "KeyboardInterrupt")
    free_soon()
    assert "and on" in text_of(run(kernel[1], "%gemma -m echo and on")[-2])


@pytest.mark.parametrize("kernel", [{"MODEL": "demo", "PREFILL_CHUNK": "8"}], indirect=True)
def test_while_the_prompt_is_read(kernel):
    run(kernel[1], "%gemma warm up the server;")
    stopped = interrupted(kernel, f"%gemma {LONG}", lambda message: "reading" in text_of(message))
    assert stopped["error"] == "Stopped"
    assert any("stopped" in text_of(message) for message in stopped["shown"])
    free_soon()
    assert Client(load_settings()).status()["engine"]["steps"] < 300


def test_while_it_streams_and_the_part_is_kept(kernel):
    stopped = interrupted(kernel, f"%gemma -o kept -m echo-slow {LONG}", lambda message: "word3" in text_of(message))
    assert stopped["error"] == "Stopped"
    free_soon()
    shown = run(kernel[1], "import json; print(json.dumps([kept.text[:11], kept.finish, len(kept.text)]))")
    beginning, finish, length = json.loads(next(text_of(each) for each in shown if text_of(each)))
    assert (beginning, finish) == ("word0 word1", "cancelled")
    assert length < len(LONG) / 2


def test_while_others_are_before_it(kernel):
    run(kernel[1], "%gemma -m echo-slow warm")
    others = [threading.Thread(target=_ask_slowly) for _ in range(2)]
    for other in others:
        other.start()
    stopped = interrupted(kernel, f"%gemma -m echo {LONG}", lambda message: message["msg_type"] == "display_data")
    assert stopped["error"] in ("Stopped", "KeyboardInterrupt")
    for other in others:
        other.join(20)
    free_soon()


def _ask_slowly() -> None:
    request = Request((Message("user", (TextPart("one two three four five six seven eight nine ten"),)),), "echo-slow")
    list(Client(load_settings()).stream(request))


def test_a_map_stops_and_goes_on(kernel):
    source = (
        "from jupyter_gemma import gemma\nfrom jupyter_gemma.notebook.mapping import MapStopped\n"
        "words = [f'value{number} ' + 'and on ' * 4 for number in range(6)]\n"
        "try:\n    gemma.map(words, '{}', model='echo-slow', concurrency=2)\n"
        "except MapStopped as stopped:\n    half = stopped.result\n    raise"
    )
    stopped = interrupted(kernel, source, lambda message: text_of(message).startswith(("1 of", "2 of", "3 of")))
    assert stopped["error"] == "MapStopped"
    free_soon()
    shown = run(kernel[1], "print(len(half.missing) > 0, len(half.resume().missing))")
    assert "True 0" in "".join(map(text_of, shown))
