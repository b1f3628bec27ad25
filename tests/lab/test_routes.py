"""The Jupyter Server routes: who may ask, under which address, and what comes back."""

import inspect
import json
import subprocess
import threading
from importlib.metadata import version
from types import SimpleNamespace

import pytest
from tornado import web
from tornado.httpclient import HTTPClientError

from jupyter_gemma.errors import ServerLost
from jupyter_gemma.lab import handlers, routes

VERBS = ("get", "head", "post", "put", "patch", "delete")
HANDLERS = [handler for _, handler in routes.ROUTES]
CALLS = [
    (path.replace("([^/]+)", "some-id"), verb.upper())
    for path, handler in routes.ROUTES
    for verb in VERBS
    if verb in vars(handler)
]


@pytest.fixture
def answer(monkeypatch):
    """``answer(status or error)``: what the client says; returns the threads that will have asked it."""

    def set_answer(said):
        threads: list[threading.Thread] = []

        def status():
            threads.append(threading.current_thread())
            if isinstance(said, Exception):
                raise said
            return said

        monkeypatch.setattr(handlers, "Client", lambda settings, tell: SimpleNamespace(status=status))
        return threads

    return set_answer


async def test_status_is_the_handshake(jp_fetch, answer) -> None:
    threads = answer({"state": "ready", "model": "demo"})
    reply = await jp_fetch("jupyter-gemma", "status")
    said = json.loads(reply.body)
    assert said["version"] == version("jupyter-gemma")
    assert said["server"] == {"state": "ready", "model": "demo"}
    assert said["command"].endswith(" -m jupyter_gemma")
    assert reply.headers["Content-Type"].startswith("application/json")
    assert len(threads) == 1
    assert threads[0] is not threading.main_thread()


async def test_status_starts_no_server(jp_fetch, monkeypatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    reply = await jp_fetch("jupyter-gemma", "status")
    assert json.loads(reply.body)["server"]["state"] == "stopped"


async def test_an_error_keeps_its_status_and_its_way_out(jp_fetch, answer) -> None:
    answer(ServerLost("The server went away.", "Ask again."))
    with pytest.raises(HTTPClientError) as caught:
        await jp_fetch("jupyter-gemma", "status")
    assert caught.value.code == 502
    body = json.loads(caught.value.response.body)["error"]
    assert (body["code"], body["message"], body["fix"]) == ("server_lost", "The server went away.", "Ask again.")


async def test_without_token_nothing_is_told(jp_base_url, jp_serverapp, http_server_client, answer) -> None:
    answer({"state": "ready"})
    for path, verb in CALLS:
        body = b"{}" if verb in ("POST", "PUT") else None
        with pytest.raises(HTTPClientError) as caught:
            await http_server_client.fetch(f"{jp_base_url}{path[1:]}", method=verb, body=body, follow_redirects=False)
        assert caught.value.code == 403, (verb, path)
        assert b"ready" not in caught.value.response.body


@pytest.mark.parametrize("handler", HANDLERS, ids=lambda handler: handler.__name__)
def test_every_verb_is_authenticated(handler) -> None:
    verbs = [vars(handler)[verb] for verb in VERBS if verb in vars(handler)]
    assert verbs
    for verb in verbs:
        assert verb.__code__.co_filename == web.__file__, f"{verb.__name__} lacks @web.authenticated"


def test_every_handler_has_a_route() -> None:
    made = {
        value
        for value in vars(routes).values()
        if inspect.isclass(value) and issubclass(value, handlers.GemmaHandler) and value.__module__ == routes.__name__
    }
    assert made == set(HANDLERS)


async def test_the_base_url_comes_first(jp_base_url, jp_serverapp, jp_auth_header, http_server_client, answer) -> None:
    answer({"state": "ready"})
    assert jp_base_url != "/"
    reply = await http_server_client.fetch(f"{jp_base_url}jupyter-gemma/status", headers=jp_auth_header)
    assert reply.code == 200
    with pytest.raises(HTTPClientError) as caught:
        await http_server_client.fetch("/jupyter-gemma/status", headers=jp_auth_header)
    assert caught.value.code == 404


def test_the_extension_is_enabled_by_the_installed_config(jp_serverapp) -> None:
    extension = jp_serverapp.extension_manager.extensions["jupyter_gemma"]
    assert extension.enabled
    assert [app.name for app in jp_serverapp.extension_manager.extension_apps["jupyter_gemma"]] == ["jupyter_gemma"]
