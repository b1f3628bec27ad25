"""Conversations: which lines are wrong, what is learnt of them, and in which order."""

import base64
import json

import pytest
import torch

from jupyter_gemma.errors import GemmaError
from jupyter_gemma.finetune.data import Lines, chosen, pack, packs

GOOD = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
BAD = {
    "no JSON": ("{", "not JSON"),
    "a list": ("[]", "must be an object"),
    "no messages": ("{}", "messages must be a list"),
    "an unknown key": (json.dumps({"messages": GOOD, "mesages": []}), "no key 'mesages'"),
    "a role": (json.dumps({"messages": [{"role": "robot", "content": "x"}]}), "messages[0].role is 'robot'"),
    "no answer": (json.dumps({"messages": GOOD[:1]}), "nothing to learn"),
    "an empty answer": (json.dumps({"messages": [GOOD[0], {"role": "assistant", "content": " "}]}), "not empty"),
    "an answer first": (json.dumps({"messages": GOOD[::-1]}), "speaks first"),
    "no file": (
        json.dumps({"messages": [{"role": "user", "content": [{"type": "image", "image": "no.png"}]}, GOOD[1]]}),
        "messages[0].content[0] names a file that is not there",
    ),
    "an address": (
        json.dumps({"messages": [{"role": "user", "content": [{"type": "image", "image": "https://a/b"}]}, GOOD[1]]}),
        "nothing is fetched",
    ),
    "base64": (
        json.dumps({"messages": [{"role": "user", "content": [{"type": "audio", "audio": "data:,?"}]}, GOOD[1]]}),
        "no base64",
    ),
    "a part": (
        json.dumps({"messages": [{"role": "user", "content": [{"type": "smell"}]}, GOOD[1]]}),
        "type is 'smell'",
    ),
    "too deep": ("[" * 100_000, "line 3"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_wrong_line_is_named(tmp_path, name):
    line, said = BAD[name]
    path = tmp_path / "data.jsonl"
    path.write_text(f"{json.dumps({'messages': GOOD})}\n\n{line}\n")
    with pytest.raises(GemmaError, match=r"data.jsonl, line 3: ") as caught:
        Lines(path)
    assert said in caught.value.message


def test_a_broken_picture_is_named_by_its_line(tmp_path, open_base):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    asked = {"role": "user", "content": [{"type": "image", "image": "broken.png"}]}
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps({"messages": found}) + "\n" for found in (GOOD, [asked, GOOD[1]])))
    with pytest.raises(GemmaError, match=r"data.jsonl, line 2: .*not a picture"):
        Lines(path).examples(1, open_base().builder)


def test_paths_and_data_uris_and_openais_forms_are_the_same(media):
    picture, clip = (base64.b64encode((media / name).read_bytes()).decode() for name in ("plot.png", "clip.wav"))
    forms = [
        [{"type": "image", "image": "plot.png"}, {"type": "audio", "audio": "clip.wav"}],
        [
            {"type": "image", "image": f"data:image/png;base64,{picture}"},
            {"type": "audio", "audio": f"data:,{clip}"},
        ],
        [
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}},
            {"type": "input_audio", "input_audio": {"data": clip, "format": "wav"}},
        ],
    ]
    path = media / "forms.jsonl"
    path.write_text("".join(json.dumps({"messages": [{"role": "user", "content": f}, GOOD[1]]}) + "\n" for f in forms))
    lines = Lines(path)
    assert lines[0] == lines[1] == lines[2]


def test_answers_are_learnt_token_by_token_and_nothing_else(open_base, write_lines, conversations):
    """Each target is the token after its row; together they are the answers, each with the end of its turn."""
    base = open_base()
    lines = Lines(write_lines(conversations))
    decode = base.builder.tokenizer.decode
    for index, messages in enumerate(conversations):
        examples = lines.examples(index, base.builder)
        answers = [message["content"] for message in messages if message["role"] == "assistant"]
        assert [decode(example.prompt.ids[example.start :].tolist()) for example in examples] == [
            f"{answer}<turn|>" for answer in answers
        ]
        for example in examples:
            assert decode(example.prompt.ids[: example.start].tolist()).endswith("<|turn>model\n")
    examples = [example for index in range(len(lines)) for example in lines.examples(index, base.builder)]
    found = pack(examples)
    ids = found.prompt.ids
    assert torch.equal(ids[found.rows + 1], found.targets)
    learnt = torch.zeros(len(ids), dtype=torch.bool)
    learnt[found.rows + 1] = True
    begin = 0
    for example in examples:
        expected = torch.arange(len(example)) >= example.start
        assert torch.equal(learnt[begin : begin + len(example)], expected)
        begin += len(example)
    soft = torch.zeros(len(ids), dtype=torch.bool)
    for media in found.prompt.soft:
        soft[media.offset : media.offset + media.count] = True
        assert len(set(ids[media.offset : media.offset + media.count].tolist())) == 1
    assert soft.sum() > 40
    assert not (soft & learnt).any()


def test_where_a_template_opens_answers_with_an_empty_thought_the_prompt_has_it(open_base):
    """Gemma 4's own turns: the thought stands in the prompt, and not in what is learnt."""
    from dataclasses import replace

    from jupyter_gemma.engine.template import Template
    from jupyter_gemma.engine.turns import gemma4_turns
    from jupyter_gemma.finetune.data import answer_ids
    from jupyter_gemma.types import Message, Request, TextPart

    builder = open_base().builder
    template = Template(gemma4_turns, tuple(builder.tokenizer.special), tool_responses=True)
    builder = replace(builder, template=template)
    user = Message("user", (TextPart("Hi"),))
    for answer in ("Hello", "7 rows"):
        asked = builder.render(Request((user,)))
        told = builder.render(Request((user, Message("assistant", (TextPart(answer),)))))
        assert asked.endswith("<channel|>")
        assert builder.tokenizer.decode(answer_ids(builder, asked, told)) == f"{answer}<turn|>"


def test_every_epoch_takes_every_line_once_in_a_new_order():
    steps = [chosen(step, 4, 10, seed=1) for step in range(5)]
    flat = [index for step in steps for index in step]
    assert sorted(flat[:10]) == sorted(flat[10:]) == list(range(10))
    assert flat[:10] != flat[10:]
    assert chosen(3, 4, 10, seed=1) == steps[3]
    assert chosen(3, 4, 10, seed=2) != steps[3]


def test_packs_hold_what_fits(open_base, write_lines, conversations):
    base = open_base()
    lines = Lines(write_lines(conversations))
    examples = [example for index in range(len(lines)) for example in lines.examples(index, base.builder)]
    longest = max(map(len, examples))
    found = packs(examples, longest)
    assert all(sum(each.counts) <= longest for each in found)
    assert sorted(count for each in found for count in each.counts) == sorted(map(len, examples))
    assert len(packs(examples, 1)) == len(examples)
    assert len(packs(examples, 10_000)) == 1


def test_memory_does_not_grow_with_the_file(tmp_path):
    import tracemalloc

    path = tmp_path / "long.jsonl"
    line = json.dumps({"messages": [GOOD[0], {"role": "assistant", "content": "x" * 1000}]}) + "\n"
    path.write_text(line * 20_000)
    tracemalloc.start()
    lines = Lines(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(lines) == 20_000
    assert peak < 2_000_000
    assert path.stat().st_size > 20_000_000
