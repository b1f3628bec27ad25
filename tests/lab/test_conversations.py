"""Saved conversations and the other server: private files, whole or not at all, and no key in the browser."""

import json
from pathlib import Path

import pytest
from tornado.httpclient import HTTPClientError

from jupyter_gemma.errors import BadOption, ConversationChanged, NoConversation, RequestError
from jupyter_gemma.lab import files
from jupyter_gemma.lab.conversations import Conversations
from jupyter_gemma.lab.remote import set_remote

EXCHANGE = {"text": "What is in the plot?", "answers": [{"text": "A sine wave."}]}


@pytest.fixture
def saved(tmp_path: Path) -> Conversations:
    return Conversations(tmp_path / "conversations")


def content(title: str = "Plots", revision: int = 0) -> dict[str, object]:
    return {"title": title, "exchanges": [EXCHANGE], "revision": revision}


def test_write_and_read(saved: Conversations) -> None:
    summary = saved.write("a-1", content())
    assert (summary["title"], summary["revision"]) == ("Plots", 1)
    assert saved.read("a-1") == {**summary, "exchanges": [EXCHANGE]}


def test_the_newest_stands_first(saved: Conversations) -> None:
    for name in ("a", "b"):
        saved.write(name, content(name))
    saved.write("a", content("a", revision=1))
    assert [summary["id"] for summary in saved.summaries()] == ["a", "b"]


@pytest.mark.parametrize(("words", "found"), [("PLOT", 1), ("sine", 1), ("in the", 1), ("cosine", 0), ("", 1)])
def test_search_reads_titles_questions_and_answers(saved: Conversations, words: str, found: int) -> None:
    saved.write("a", content())
    assert len(saved.summaries(words)) == found


def test_two_tabs_do_not_overwrite_each_other(saved: Conversations) -> None:
    saved.write("a", content())
    saved.write("a", content("tab one", revision=1))
    with pytest.raises(ConversationChanged):
        saved.write("a", content("tab two", revision=1))
    assert saved.read("a")["title"] == "tab one"


def test_delete(saved: Conversations) -> None:
    saved.write("a", content())
    saved.delete("a")
    assert saved.summaries() == []
    for gone in (saved.read, saved.delete):
        with pytest.raises(NoConversation):
            gone("a")


@pytest.mark.parametrize("name", ["../a", "a/b", "", "a" * 65, "a.json", "ä"])
def test_an_id_is_no_path(saved: Conversations, name: str) -> None:
    with pytest.raises(RequestError):
        saved.write(name, content())


@pytest.mark.parametrize("wrong", [{}, {"title": "x"}, {"title": 1, "exchanges": []}])
def test_what_is_no_conversation_is_refused(saved: Conversations, wrong: dict[str, object]) -> None:
    with pytest.raises(RequestError):
        saved.write("a", wrong)


def test_a_damaged_file_is_not_listed_and_not_touched(saved: Conversations, tmp_path: Path) -> None:
    saved.write("a", content())
    damaged = tmp_path / "conversations" / "b.json"
    damaged.write_text('{"id": "b", "tit')
    assert [summary["id"] for summary in saved.summaries()] == ["a"]
    assert damaged.exists()


def test_a_failed_write_leaves_the_old_file(saved: Conversations, tmp_path: Path, monkeypatch) -> None:
    saved.write("a", content())

    def full(*_, **__) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="space"):
        saved.write("a", content("new", revision=1))
    assert saved.read("a")["title"] == "Plots"
    assert [path.name for path in (tmp_path / "conversations").iterdir()] == ["a.json"]


def test_files_are_private(saved: Conversations, tmp_path: Path) -> None:
    saved.write("a", content())
    folder = tmp_path / "conversations"
    assert (folder / "a.json").stat().st_mode & 0o077 == 0
    assert folder.stat().st_mode & 0o077 == 0


async def test_conversations_through_the_routes(jp_fetch) -> None:
    route = ("jupyter-gemma", "conversations")
    made = json.loads((await jp_fetch(*route, "a", method="PUT", body=json.dumps(content()))).body)
    assert made["revision"] == 1
    listed = json.loads((await jp_fetch(*route, params={"search": "sine"})).body)
    assert [summary["id"] for summary in listed["conversations"]] == ["a"]
    assert json.loads((await jp_fetch(*route, "a")).body)["exchanges"] == [EXCHANGE]
    with pytest.raises(HTTPClientError) as caught:
        await jp_fetch(*route, "a", method="PUT", body=json.dumps(content()))
    assert caught.value.code == 409
    await jp_fetch(*route, "a", method="DELETE")
    with pytest.raises(HTTPClientError) as caught:
        await jp_fetch(*route, "a")
    assert caught.value.code == 404


async def test_the_key_stays_on_the_server(jp_fetch, jp_serverapp) -> None:
    body = json.dumps({"base_url": "http://127.0.0.1:9/v1", "api_key": "secret"})
    replies = [await jp_fetch("jupyter-gemma", "remote", method="PUT", body=body)]
    replies.append(await jp_fetch("jupyter-gemma", "remote"))
    replies.append(await jp_fetch("jupyter-gemma", "status"))
    assert all(b"secret" not in reply.body for reply in replies)
    assert json.loads(replies[1].body) == {"base_url": "http://127.0.0.1:9/v1", "has_key": True}
    assert json.loads(replies[2].body)["server"]["state"] == "remote"
    await jp_fetch("jupyter-gemma", "remote", method="PUT", body=json.dumps({"base_url": ""}))
    assert json.loads((await jp_fetch("jupyter-gemma", "remote")).body) == {"base_url": "", "has_key": False}


async def test_the_address_can_be_fixed(jp_fetch, jp_serverapp) -> None:
    jp_serverapp.web_app.settings["gemma_allow_base_url"] = False
    with pytest.raises(HTTPClientError) as caught:
        await jp_fetch("jupyter-gemma", "remote", method="PUT", body=json.dumps({"base_url": "http://a/v1"}))
    assert caught.value.code == 400


@pytest.mark.parametrize("address", ["ftp://host/v1", "host:80", "http://"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(BadOption):
        set_remote(address, None)
