"""Drafts change no token, and save passes. Passes are counted, never timed."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jupyter_gemma.engine import speculate
from jupyter_gemma.engine.engine import GemmaEngine, drafter_folder
from jupyter_gemma.engine.media import read_media_config
from jupyter_gemma.engine.prompt import PromptBuilder
from jupyter_gemma.engine.sampling import SamplingDefaults
from jupyter_gemma.engine.speculate import (
    GRAMS,
    ROWS,
    LookupDrafter,
    Place,
    Speculation,
    Speculator,
    measure_rows,
    plan_speculation,
)
from jupyter_gemma.engine.template import load_template
from jupyter_gemma.engine.tokenizer import load_tokenizer
from jupyter_gemma.errors import BadOption
from jupyter_gemma.model.cache import DEFAULT_SLACK, SequenceCache, cache_bytes
from jupyter_gemma.model.checkpoint import load
from jupyter_gemma.model.config import DRAFTER
from jupyter_gemma.model.decoder import Prompt, Span
from jupyter_gemma.model.drafter import Drafter
from jupyter_gemma.settings import load_settings
from jupyter_gemma.types import Constraint, ModelCard, Sampling

FREE = (1.0,) * len(ROWS)  # rows cost nothing: drafts are as long as they can be
LONGEST = ROWS[-1] - 1
WORDS = Constraint("regex", "(a|b| ){8000}")  # an answer that goes on until max_tokens
REPETITIVE = ["a b " * 30, "Which column has the largest mean?\na: 1, 2\nb: 3, 4\n" * 5, "stop " * 300]


class Scripted:
    """Drafts what it is told: ``script(ids, count)``."""

    def __init__(self, script):
        self.script = script

    def grade(self, ids):
        return 0

    def propose(self, place, count):
        return self.script(place.ids, count)


def scripted(script, costs=FREE):
    return SimpleNamespace(begin=lambda ids: Speculator(Scripted(script), costs))


def wrong(ids, count):
    return [100 + (ids[-1] + step) % 900 for step in range(count)]


def told(reader):
    """All of an answer but its times; chances as near as sums in another order are."""
    last = reader.join().chunks[-1]
    assert reader.error is None
    chances = [chance for chunk in reader.chunks for chance in chunk.logprobs]
    return (
        reader.text,
        reader.finish,
        last.usage.completion_tokens,
        [(c.text, pytest.approx(c.logprob, abs=1e-4)) for c in chances],
    )


@pytest.fixture
def both(make_engine, read, watched):
    """``both(request, speculation) -> (answer, passes without drafts, passes with)``; the answers are equal."""
    plain = make_engine()

    def compare(request, speculation):
        watched.passes.clear()
        expected = told(read(plain, request))
        without = list(watched.passes)
        watched.passes.clear()
        engine = make_engine(speculation=speculation)
        assert told(read(engine, request)) == expected
        return expected, without, list(watched.passes)

    return compare


@pytest.fixture
def lookup(watched):
    return Speculation(watched, FREE)


@pytest.fixture
def of_small(watched, small):
    """Answers by a smaller model: for long ones."""
    watched.model = small


# ------------------------------------------------------------------------------------------------ lookup


def latest_longest(ids):
    """(size, where it ended) of the longest gram at the end that was there before, the last time it was."""
    for size in GRAMS:
        for end in range(len(ids) - 1, size - 1, -1):
            if ids[end - size : end] == ids[-size:]:
                return size, end
    return None


@given(st.lists(st.integers(0, 2), max_size=40), st.lists(st.integers(1, 9), max_size=10))
def test_it_finds_the_longest_and_latest(ids, steps):
    """However many tokens come between two looks."""
    drafter, read = LookupDrafter([]), 0
    for step in steps:
        read = min(read + step, len(ids))
        expected = latest_longest(ids[:read])
        assert drafter.grade(ids[:read]) == (None if expected is None else expected[0])
        if expected is not None:
            start = expected[1]
            text = ids[start:read]
            draft = drafter.propose(Place(ids[:read], torch.empty(0), SequenceCache(())), 20)
            assert draft == (text * 20)[:20]


def test_nothing_is_read_twice():
    class Counted(list):
        reads = 0

        def __getitem__(self, key):
            Counted.reads += 1
            return super().__getitem__(key)

    ids = Counted(range(100))
    drafter = LookupDrafter(ids)
    for token in range(1000):
        ids.append(token % 17)
        drafter.grade(ids)
    assert Counted.reads <= len(GRAMS) * len(ids)


# ------------------------------------------------------------------------------------------------ the same answers


@pytest.mark.parametrize("text", REPETITIVE)
def test_lookup_changes_no_token_and_saves_passes(both, ask, lookup, text):
    (answer, finish, tokens, _), without, drafted = both(ask(text, max_tokens=150, constraint=WORDS), lookup)
    assert (finish, tokens) == ("length", 150)
    assert len(drafted) < len(without) / 2, f"{answer[:40]!r} repeats itself, so most of it can be guessed"


@pytest.mark.parametrize("text", REPETITIVE)
def test_answers_that_end_by_themselves(both, ask, lookup, text):
    both(ask(text, max_tokens=100), lookup)


def test_right_guesses_are_all_taken(both, ask, make_engine, read):
    """A perfect drafter: each pass gives the whole draft and one token more."""
    ids = written_ids(make_engine, read, ask("Count", max_tokens=131, constraint=WORDS))
    (_, _, tokens, _), without, drafted = both(ask("Count", max_tokens=129, constraint=WORDS), scripted(following(ids)))
    assert tokens == 129
    assert len(without) == 129
    assert len(drafted) == 1 + 128 // ROWS[-1]
    assert [spans[0] for spans in drafted[1:]] == [ROWS[-1]] * 4


def written_ids(make_engine, read, request):
    """Ids of prompt and answer, as the drafts saw them."""
    seen = []

    def note(ids, count):
        seen[:] = ids
        return [3]  # never chosen

    read(make_engine(speculation=scripted(note)), request).join()
    return list(seen)


def following(ids, then=()):
    """A script that knows ``ids``."""
    return lambda now, count: [*ids[len(now) :], *then][:count]


@pytest.mark.usefixtures("of_small")
@pytest.mark.parametrize("script", [wrong, lambda ids, count: [], lambda ids, count: [1, 5] * (count // 2)])
def test_wrong_guesses_change_nothing(both, ask, script):
    """Far beyond the window and its slack, so that what is taken back would be missed. 1 and 5 end answers."""
    _, without, drafted = both(ask("Count", max_tokens=500, constraint=WORDS), scripted(script))
    assert len(drafted) == len(without)


@pytest.mark.usefixtures("of_small")
@pytest.mark.parametrize("guessed", [0.3, 0.7, 0.95])
def test_some_right_guesses(both, ask, make_engine, read, guessed):
    request = ask("Count", max_tokens=400, constraint=WORDS)
    ids = written_ids(make_engine, read, request)
    random = torch.Generator().manual_seed(0)

    def script(now, count):
        right = torch.rand(count, generator=random) < guessed
        return [token if good else 3 for token, good in zip(ids[len(now) :], right.tolist(), strict=False)]

    _, without, drafted = both(request, scripted(script))
    assert len(drafted) < len(without)


def test_the_end_inside_a_draft(both, ask, make_engine, read):
    """Guesses that go on where the model ends, with its own end or without."""
    request = ask("stop " * 50, max_tokens=60)
    ids = written_ids(make_engine, read, request)
    for then in ([3] * 40, [1] * 40, [5] * 40, ids):
        (_, finish, tokens, _), _, _ = both(request, scripted(following(ids, then)))
        assert finish == "stop"
        assert tokens < 60


@pytest.mark.parametrize("limit", [1, 2, 3, 31, 32, 33, 34, 65])
def test_max_tokens_inside_a_draft(both, ask, make_engine, read, limit):
    ids = written_ids(make_engine, read, ask("Count", max_tokens=120, constraint=WORDS))
    (_, finish, tokens, _), _, drafted = both(
        ask("Count", max_tokens=limit, constraint=WORDS), scripted(following(ids))
    )
    assert (finish, tokens) == ("length", limit)
    assert sum(spans[0] for spans in drafted[1:]) == limit - 1, "no row is computed beyond the end"


def test_a_stop_string_inside_a_draft(both, ask, make_engine, read):
    free = ask("Count", max_tokens=80, constraint=WORDS)
    ids = written_ids(make_engine, read, free)
    text = read(make_engine(), free).join().text
    for length in (3, 7, 20):
        stop = text[40 : 40 + length]
        sampling = Sampling(temperature=0, max_tokens=80, stop=(stop,))
        (answer, finish, _, _), _, _ = both(ask("Count", sampling=sampling, constraint=WORDS), scripted(following(ids)))
        assert finish == "stop"
        assert stop not in answer


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.0, seed=3, max_tokens=100),
        Sampling(temperature=1.5, top_k=5, top_p=0.8, seed=4, max_tokens=100),
        Sampling(temperature=0.7, min_p=0.1, repetition_penalty=1.3, seed=5, max_tokens=100),
        Sampling(temperature=0, repetition_penalty=1.5, max_tokens=100),
        Sampling(temperature=0, logprobs=3, max_tokens=100),
    ],
)
@pytest.mark.parametrize("constraint", [None, WORDS])
def test_every_way_to_choose(both, ask, lookup, sampling, constraint):
    """Drawn answers too: the same seed draws the same tokens. Chances of tokens are told as before."""
    both(ask(REPETITIVE[0], sampling=sampling, constraint=constraint), lookup)


def test_company(make_engine, ask, read, lookup, watched):
    """Several answers, each with its drafts, beside prompts that are read."""
    requests = [ask(text, max_tokens=90, constraint=WORDS, client=str(n)) for n, text in enumerate(REPETITIVE)]
    alone = [told(read(make_engine(), request)) for request in requests]
    engine = make_engine(speculation=lookup)
    together = [told(reader) for reader in [read(engine, request) for request in requests]]
    assert together == alone
    status = engine.status()
    assert 0 < status.accepted_tokens <= status.drafted_tokens
    assert status.completion_tokens == 3 * 90


@pytest.mark.usefixtures("of_small")
def test_an_answer_that_outgrows_the_memory_goes_on(make_engine, ask, read, small, lookup):
    """Sent back and computed again in the middle of its drafts."""
    room = cache_bytes(small.config, 700, chunk=512, marks=(), dtype=torch.float32)
    requests = [ask(f"{n} " * 40, max_tokens=400, constraint=WORDS) for n in range(2)]
    alone = [told(read(make_engine(), request)) for request in requests]
    engine = make_engine(speculation=lookup, cache_memory=room)
    assert [told(reader) for reader in [read(engine, request) for request in requests]] == alone


def test_the_next_turn_finds_a_drafted_one_computed(make_engine, ask, read, lookup):
    question = "mean " * 40
    engine, plain = make_engine(speculation=lookup), make_engine()
    first = read(engine, ask(question, max_tokens=50, constraint=WORDS)).join().text
    turns = ask(question, first, "stop", max_tokens=20, constraint=WORDS)
    reader = read(engine, turns)
    assert told(reader) == told(read(plain, turns))
    assert reader.chunks[-1].usage.cached_tokens > 40


def test_cancelling_costs_the_pass_under_way(make_engine, ask, watched, lookup):
    watched.go = threading.Semaphore(3)
    cancel = threading.Event()
    engine = make_engine(speculation=lookup)
    stream = engine.stream(ask("a b " * 30, max_tokens=1000, constraint=WORDS), cancel)
    next(stream)
    for _ in range(4):
        watched.reached.acquire()
    cancel.set()
    watched.go.release(10**6)
    assert list(stream)[-1].finish == "cancelled"
    assert len(watched.passes) == 4


def test_a_drafter_that_fails_ends_its_own_answer_only(make_engine, ask, read, lookup):
    def script(ids, count):
        raise RuntimeError("no idea")

    begins = iter([scripted(script), lookup])
    engine = make_engine(speculation=SimpleNamespace(begin=lambda ids: next(begins).begin(ids)))
    bad = read(engine, ask("a b " * 30, max_tokens=50, constraint=WORDS)).join()
    assert "no idea" in str(bad.error)
    assert read(engine, ask("a b " * 30, max_tokens=50, constraint=WORDS)).join().finish == "length"


# ------------------------------------------------------------------------------------------------ chances


@pytest.mark.usefixtures("of_small")
def test_drawn_tokens_have_their_chances(make_engine, ask, read, watched, builder):
    """Chi-square of tokens and of pairs of tokens, which are drawn independently; every guess is the likeliest."""
    letters = [builder.tokenizer.encode(letter)[0] for letter in "abcd"]
    chances = torch.tensor([0.55, 0.25, 0.15, 0.05])
    scores = torch.full((watched.config.vocab_size,), float("-inf"))
    scores[letters] = chances.log()
    watched.spoil = lambda found: scores.expand(len(found), -1)
    guess = scripted(lambda ids, count: [letters[0]] * count, costs=(1.0, 1.0, 1.0, 9.0, 9.0, 9.0))
    engine = make_engine(speculation=guess)
    sampling = Sampling(temperature=1.0, top_k=0, top_p=1.0, seed=11, max_tokens=3000)
    text = read(engine, ask("Draw", sampling=sampling)).join().text.replace(" ", "")
    status = engine.status()
    assert len(text) == 3000
    assert status.steps < 2000
    assert status.accepted_tokens > 1000
    drawn = torch.tensor(["abcd".index(letter) for letter in text])
    assert chi_square(drawn.bincount(minlength=4), chances) < 21.1  # 3 degrees of freedom, one in 10,000
    pairs = (4 * drawn[:-1:2] + drawn[1::2]).bincount(minlength=16)
    assert chi_square(pairs, (chances[:, None] * chances).flatten()) < 44.3  # 15 degrees of freedom


def chi_square(counts, chances):
    expected = chances * counts.sum()
    return float(((counts - expected) ** 2 / expected).sum())


# ------------------------------------------------------------------------------------------------ how long


def test_no_draft_is_longer_than_can_be_taken_back():
    assert LONGEST <= DEFAULT_SLACK


@pytest.mark.parametrize("chunk", [1, 2, 20])
def test_a_pass_has_no_more_rows_than_are_read_at_once(make_engine, ask, read, watched, lookup, chunk):
    read(make_engine(speculation=lookup, prefill_chunk=chunk), ask("a b " * 10, max_tokens=60, constraint=WORDS)).join()
    assert max(map(max, watched.passes)) <= chunk


def lengths(costs, guesses, right, company=1, link=0.0):
    """Lengths of drafts, one after the other, of which so many are right."""
    speculator = Speculator(Scripted(lambda ids, count: [7] * count), costs, link)
    found = []
    for _ in range(guesses):
        draft = speculator.draft(Place([1], torch.empty(0), SequenceCache(())), LONGEST, company)
        found.append(len(draft))
        if draft:
            speculator.learn(len(draft), min(right, len(draft)))
    return found


KERNEL = (1.0, 1.02, 1.15, 1.65, 3.2, 5.5)


def test_drafts_grow_with_success_and_shrink_without():
    assert lengths(KERNEL, 30, right=99)[-1] == 31
    assert lengths(KERNEL, 30, right=3)[-1] == 3
    failing = lengths(KERNEL, 30, right=0)
    assert failing[0] > failing[-1] == 1, "a second row is nearly free"


def test_where_rows_cost_what_they_do_nothing_is_drafted():
    assert set(lengths(tuple(map(float, ROWS)), 30, right=99)) == {0}


def test_in_company_drafts_are_shorter():
    assert lengths(KERNEL, 30, right=99, company=8)[-1] < lengths(KERNEL, 30, right=99)[-1]


def test_a_draft_that_costs_is_shorter():
    assert lengths(KERNEL, 30, right=99, link=0.4)[-1] < 31


def test_what_failed_is_tried_again_some_time():
    costs = (1.0, 1.4, 2.0, 4.0, 8.0, 16.0)
    found = lengths(costs, 100, right=0)
    first = found.index(0)
    assert any(found[first:])
    assert found.count(0) > 70


# ------------------------------------------------------------------------------------------------ the model drafter


@pytest.fixture
def random_drafter(small):
    """A drafter of random weights for ``small``."""
    config = replace(
        small.config,
        architecture=DRAFTER,
        layers=("sliding", "sliding", "full"),
        hidden_size=32,
        intermediate_size=64,
        backbone_size=small.config.hidden_size,
        vision=None,
        audio=None,
    )
    drafter = Drafter(config, small.config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(2)
    for parameter in drafter.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(1 + 0.2 * noise if parameter.dim() == 1 else noise * parameter.shape[-1] ** -0.5)
    return drafter


@pytest.mark.usefixtures("of_small")
def test_a_model_drafts(both, ask, small, random_drafter):
    """Its guesses are mostly wrong here; the answer stays, beyond the window too."""
    _, _, drafted = both(ask("Count", max_tokens=300, constraint=WORDS), Speculation(small, FREE, random_drafter))
    assert max(map(max, drafted[1:])) > 1


@pytest.mark.usefixtures("of_small")
def test_a_drafter_is_told_where_the_answer_stands(make_engine, ask, read, small):
    """After right guesses and wrong ones: the state that chose the last token, and a cache of all before it."""
    request = ask("Count", max_tokens=60, constraint=WORDS)
    ids = written_ids(make_engine, read, request)
    seen = []

    class Noting(Scripted):
        def propose(self, place, count):
            with torch.inference_mode():
                before = torch.tensor(place.ids[:-1])
                afresh = small(small.embed(Prompt(before)), [Span(len(before), SequenceCache.for_model(small.config))])
            seen.append((place.cache.length == len(before), float((afresh[-1] - place.hidden).abs().max())))
            return [*ids[len(place.ids) :][: len(seen) % 4], 3][:count]

    begin = SimpleNamespace(begin=lambda _: Speculator(Noting(None), FREE))
    read(make_engine(speculation=begin), request).join()
    assert len(seen) > 15
    assert all(complete for complete, _ in seen)
    assert max(error for _, error in seen) < 1e-3


def test_a_draft_is_a_chain(small, random_drafter):
    """A longer draft begins like a shorter one, and the cache stays."""
    cache = SequenceCache.for_model(small.config)
    ids = torch.randint(100, 1000, (200,), generator=torch.Generator().manual_seed(0))
    hidden = small(small.embed(Prompt(ids)), [Span(200, cache)])[-1]
    short = random_drafter.draft(small, 7, hidden, cache, 3)
    assert random_drafter.draft(small, 7, hidden, cache, 9)[:3] == short
    assert random_drafter.draft(small, 8, hidden, cache, 3) != short
    assert cache.length == 200


# ------------------------------------------------------------------------------------------------ switching


def test_off(demo):
    assert plan_speculation("off", demo, None) is None


def test_auto_measures_whether_it_pays(demo, monkeypatch):
    monkeypatch.setattr(speculate, "measure_rows", lambda model: KERNEL)
    assert plan_speculation("auto", demo, None).drafter is None
    monkeypatch.setattr(speculate, "measure_rows", lambda model: tuple(map(float, ROWS)))
    assert plan_speculation("auto", demo, None) is None
    assert plan_speculation("lookup", demo, None) is not None


def test_a_drafter_that_is_not_there(demo):
    with pytest.raises(BadOption, match="no drafter"):
        plan_speculation("drafter", demo, None)


def test_where_the_drafter_is_looked_for(tmp_path):
    settings = load_settings({"models_dir": str(tmp_path)}, {})
    assert drafter_folder(settings, ModelCard("large")) is None
    (tmp_path / "large-assistant").mkdir()
    assert drafter_folder(settings, ModelCard("large")) == tmp_path / "large-assistant"
    named = load_settings({"drafter": "/somewhere"}, {})
    assert drafter_folder(named, ModelCard("large")) == Path("/somewhere")


def test_costs_are_relative_to_one_row(demo):
    costs = measure_rows(demo)
    assert costs[0] == 1
    assert len(costs) == len(ROWS)
    assert all(cost >= 1 for cost in costs)


# ------------------------------------------------------------------------------------------------ a real model


def test_gemma3_270m(gemma3_file, ask, read):
    model = load(gemma3_file, device="cpu").model
    tokenizer = load_tokenizer(gemma3_file)
    template = load_template(gemma3_file, tokenizer, instruct=True, architecture=model.config.architecture)
    media = read_media_config(gemma3_file, model.config)
    builder = PromptBuilder(model.config, tokenizer, template, media, 2048)
    requests = [ask("Say again: one two three one two three one two three one two", max_tokens=24)]
    found = []
    for speculation in (None, Speculation(model, FREE)):
        engine = GemmaEngine(ModelCard("gemma3"), model, builder, SamplingDefaults(), speculation=speculation)
        try:
            found.append([told(read(engine, request)) for request in requests])
            steps = engine.status().steps
        finally:
            engine.close()
    assert found[0] == found[1]
    assert steps < sum(answer[2] for answer in found[1]) * 0.8
