"""What of a prompt is not computed again: rows are counted, and the answers stay the same."""

from __future__ import annotations

import functools
import io
import threading
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from jupyter_gemma.engine.prefix import Kept, PrefixPool, shared
from jupyter_gemma.engine.prompt import piece, prompt_keys, whole
from jupyter_gemma.model.cache import SequenceCache, cache_bytes
from jupyter_gemma.model.config import AttentionConfig
from jupyter_gemma.model.decoder import Prompt, SoftTokens
from jupyter_gemma.types import Constraint, ImagePart, TextPart

WORDS = Constraint("regex", "(a|b|c ){8000}")
SYSTEM = "You are a careful statistician. " * 60  # well beyond the window and its slack
QUESTION = "Which column has the largest mean? " * 5


@pytest.fixture
def watched(watched, small):
    watched.model = small
    return watched


def told(engine, request):
    """(text, last chunk's usage)."""
    chunks = list(engine.stream(request, threading.Event()))
    return "".join(chunk.text for chunk in chunks), chunks[-1].usage


@pytest.fixture
def hit(watched, make_engine):
    """Ask an engine; returns (text, usage, rows computed for the prompt); the text must be that of a fresh engine."""
    fresh = functools.lru_cache(lambda request: told(make_engine(), request)[0])

    def check(engine, request):
        expected = fresh(request)
        before = watched.rows
        text, usage = told(engine, request)
        assert text == expected
        computed = watched.rows - before - (usage.completion_tokens - 1)
        assert computed == usage.prompt_tokens - usage.cached_tokens, "the usage says something else"
        return text, usage, computed

    return check


# ------------------------------------------------------------------------------------------------ what must hit


@pytest.mark.parametrize("opening", ["Short. ", SYSTEM])
@pytest.mark.parametrize("answer_tokens", [8, 300])
def test_a_second_turn_computes_what_is_new(hit, engine, ask, opening, answer_tokens):
    first = opening + QUESTION
    text, usage, _ = hit(engine, ask(first, max_tokens=answer_tokens, constraint=WORDS))
    _, usage_2, computed = hit(engine, ask(first, text, "And the smallest?", constraint=WORDS))
    again = usage_2.prompt_tokens - usage.prompt_tokens
    assert computed <= again + 8
    assert computed <= 40 + answer_tokens
    if answer_tokens == 8:
        assert computed <= 60


def test_an_answer_that_is_written_otherwise_counts_up_to_there(hit, engine, ask):
    """Thoughts are dropped, white space is trimmed: the prompt before the answer is shared all the same."""
    first = SYSTEM + QUESTION
    _, usage, _ = hit(engine, ask(first, max_tokens=300, constraint=WORDS))  # longer than the slack
    _, usage_2, computed = hit(engine, ask(first, "Something else.", "And the smallest?", constraint=WORDS))
    assert usage_2.cached_tokens >= usage.prompt_tokens - 1
    assert computed < 60


@pytest.mark.parametrize("client", ["", "me"])
def test_an_edited_last_question(hit, engine, ask, client):
    opening = (SYSTEM + QUESTION, "It is a.", "Which column of these is the one with the smallest mean? " * 4)
    hit(engine, ask(*opening, max_tokens=300, constraint=WORDS, client=client))
    edited = (*opening[:2], "Another question, edited.")
    _, usage_2, computed = hit(engine, ask(*edited, constraint=WORDS, client=client))
    assert computed < 40
    assert usage_2.cached_tokens > 400


@pytest.mark.parametrize("client", ["", "me"])
def test_regenerating_computes_one_token(hit, engine, ask, client):
    """After a long answer, which slid over the question, and after a short one."""
    for max_tokens in (300, 8, 9):
        _, usage, computed = hit(engine, ask(SYSTEM + QUESTION, max_tokens=max_tokens, constraint=WORDS, client=client))
        assert max_tokens == 300 or computed == 1
        assert usage.cached_tokens == usage.prompt_tokens - computed


@pytest.mark.parametrize("gap", [0, 300])
def test_two_notebooks_with_one_opening(hit, engine, ask, gap):
    """Both go on afterwards: neither took the other's away. A long answer slides over the opening."""
    one = ask(SYSTEM + "One asks this.", max_tokens=8 + gap, constraint=WORDS, client="one")
    two = ask(SYSTEM + "Two asks that.", max_tokens=8 + gap, constraint=WORDS, client="two")
    text_1, usage, _ = hit(engine, one)
    text_2, _, computed = hit(engine, two)
    assert computed < 30 or gap
    hit(engine, ask(SYSTEM + "Three.", constraint=WORDS, client="three"))
    _, _, computed = hit(engine, ask(SYSTEM + "Four.", constraint=WORDS, client="four"))
    assert computed < 30
    for request, text in ((one, text_1), (two, text_2)):
        question = request.messages[0].text
        _, _, computed = hit(engine, ask(question, text, "More?", constraint=WORDS, client=request.client))
        assert computed < 60 + gap
    assert usage.cached_tokens == 0


def test_a_running_request_shares_its_prompt(engine, ask, read):
    """The same question several times at once is read once."""
    request = ask(SYSTEM + QUESTION, max_tokens=30, constraint=WORDS)
    readers = [read(engine, request) for _ in range(4)]
    texts = {reader.join().text for reader in readers}
    assert len(texts) == 1
    cached = sorted(reader.chunks[-1].usage.cached_tokens for reader in readers)
    length = readers[0].chunks[-1].usage.prompt_tokens
    assert cached == [0, length - 1, length - 1, length - 1]


def test_a_cancelled_request_leaves_what_it_computed(make_engine, ask):
    engine = make_engine(prefill_chunk=100)
    cancel = threading.Event()
    for chunk in engine.stream(ask(SYSTEM), cancel):
        if chunk.progress and chunk.progress.done >= 300:
            cancel.set()
    _, usage = told(engine, ask(SYSTEM))
    assert usage.cached_tokens >= 300


def picture(shade):
    data = io.BytesIO()
    Image.new("RGB", (96, 96), (shade, 0, 0)).save(data, "PNG")
    return ImagePart(data.getvalue())


def test_pictures_count_by_what_they_show(hit, engine, ask, say):
    """The same picture hits; another one of the same size does not, nor anything after it."""
    first = say("user", picture(10), "What is this? Tell me all that you can see there.")
    text, usage, _ = hit(engine, ask(first, constraint=WORDS))
    assert usage.image_tokens > 0
    _, usage_2, computed = hit(engine, ask(first, text, "And now?", constraint=WORDS))
    assert usage_2.cached_tokens >= usage.prompt_tokens - 1
    assert computed < 30
    other = say("user", picture(11), "What is this? Tell me all that you can see there.")
    _, usage_3, _ = hit(engine, ask(other, constraint=WORDS))
    assert usage_3.cached_tokens <= 8


# ------------------------------------------------------------------------------------------------ bounds


def budget(model, positions):
    return cache_bytes(model.config, positions, chunk=512, marks=(), dtype=torch.float32)


def test_the_memory_is_never_exceeded(make_engine, ask, small):
    engine = make_engine(cache_memory=budget(small, 1500))
    for number in range(12):
        told(engine, ask(f"{number} " + "mean " * 300, constraint=WORDS, client=str(number)))
        status = engine.status()
        assert 0 < status.cache_bytes <= status.cache_limit
    assert status.cache_hits == 0


def test_the_oldest_go_first(make_engine, ask, small):
    """Room for two: 0 was asked again, so 1 had to go."""
    engine = make_engine(cache_memory=budget(small, 1100))
    texts = [f"{number} " * 200 for number in range(3)]
    requests = [ask(text, constraint=WORDS, client="me") for text in texts]
    for number in (0, 1, 0, 2):
        told(engine, requests[number])
    cached = [told(engine, requests[number])[1].cached_tokens for number in (2, 0, 1)]
    assert [count > 100 for count in cached] == [True, True, False]


# ------------------------------------------------------------------------------------------------ the pieces


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_the_common_prefix(first, second):
    length = shared(torch.tensor(first, dtype=torch.int64), torch.tensor(second, dtype=torch.int64))
    assert first[:length] == second[:length]
    assert length == min(len(first), len(second)) or first[length] != second[length]


def kept(keys, client="", turn=0):
    cache = SequenceCache([AttentionConfig(1, 1, 4, None, 1e4, 2)])
    cache.layers[0].append(torch.zeros(1, len(keys), 4), torch.zeros(1, len(keys), 4))
    cache.length = len(keys)
    return Kept(torch.tensor(keys), cache, client, turn)


@pytest.mark.parametrize(
    ("client", "asker", "turn", "length", "taken"),
    [
        ("me", "me", 20, 40, True),  # all of it: going on
        ("", "", 20, 40, True),
        ("me", "me", 20, 30, True),  # the last question anew
        ("me", "you", 20, 30, False),
        ("", "", 20, 30, False),  # without a name it may be another's
        ("me", "me", 35, 30, False),  # an earlier question: the later ones may be wanted
    ],
)
def test_taken_over_or_copied(client, asker, turn, length, taken):
    pool = PrefixPool()
    mine = kept(list(range(40)), client, turn)
    pool.put(mine)
    match = pool.best(torch.tensor([*range(length), *([99] * 10)]))
    assert match.length == length
    cache = pool.draw(match, asker, room=10**9, reserved=0)
    assert (cache is mine.cache) is taken
    assert (len(pool) == 0) is taken
    assert cache.length == length
    assert pool.nbytes == (0 if taken else mine.cache.nbytes)


def test_without_the_memory_for_a_copy_it_is_taken_over():
    pool = PrefixPool()
    pool.put(kept(list(range(40)), "me"))
    running = kept(list(range(30)), "you")
    match = pool.best(torch.tensor([*range(40), 1]), [running])
    assert pool.draw(match, "you", room=10, reserved=0).length == 40
    assert (len(pool), pool.nbytes) == (0, 0)
    match = pool.best(torch.tensor([*range(30), 1]), [running])
    assert pool.draw(match, "you", room=-1, reserved=0) is None, "one that runs cannot be taken"


def soft(offset, count, seed, sound=False):
    values = torch.rand(count, 4, generator=torch.Generator().manual_seed(seed))
    if sound:
        return SoftTokens(offset, frames=values)
    return SoftTokens(offset, patches=values, positions=torch.zeros(count, 2, dtype=torch.int64))


def test_keys_tell_media_apart():
    ids = torch.arange(20)
    plain = prompt_keys(Prompt(ids))
    assert torch.equal(plain, ids)
    keys = prompt_keys(Prompt(ids, (soft(3, 5, 1), soft(10, 5, 1, sound=True))))
    assert (keys[3:8] < 0).all()
    assert torch.equal(keys[:3], ids[:3])
    assert len(set(keys.tolist())) == 20
    assert torch.equal(keys, prompt_keys(Prompt(ids, (soft(3, 5, 1), soft(10, 5, 1, sound=True)))))
    assert shared(keys, prompt_keys(Prompt(ids, (soft(3, 5, 2), soft(10, 5, 1, sound=True))))) == 3


@given(st.integers(0, 20), st.integers(0, 20))
def test_pieces_of_a_prompt_have_their_media(start, end):
    prompt = Prompt(torch.arange(20), (soft(3, 5, 1), soft(10, 6, 2, sound=True)))
    start, end = min(start, end), max(start, end)
    part = piece(prompt, start, end)
    assert part.ids.tolist() == list(range(start, end))
    places = {place + start: None for media in part.soft for place in range(media.offset, media.offset + media.count)}
    assert list(places) == [place for place in range(start, end) if 3 <= place < 8 or 10 <= place < 16]
    for media in part.soft:
        source = prompt.soft[0] if media.patches is not None else prompt.soft[1]
        rows = slice(media.offset + start - source.offset, media.offset + start - source.offset + media.count)
        assert torch.equal(
            media.frames if media.patches is None else media.patches,
            source.frames[rows] if media.patches is None else source.patches[rows],
        )


def test_no_prefix_ends_inside_a_picture():
    prompt = SimpleNamespace(soft=(soft(3, 5, 1), soft(10, 6, 2, sound=True)))
    assert [whole(prompt, length) for length in (2, 3, 4, 7, 8, 12)] == [2, 3, 3, 3, 8, 12]


def test_text_parts_do_not_matter(hit, engine, ask, say):
    """The prefix is that of tokens: how the words are cut into parts makes no difference."""
    hit(engine, ask(say("user", QUESTION), constraint=WORDS))
    parts = (TextPart(QUESTION[:40]), TextPart(QUESTION[40:]))
    _, _, computed = hit(engine, ask(say("user", *parts), constraint=WORDS))
    assert computed == 1
