"""Adapters in use: by file, by request, several in one pass; merged into models; and what does not fit."""

import json
import shutil
import threading

import pytest
import torch

from jupyter_gemma.engine.adapters import Shelf
from jupyter_gemma.engine.engine import GemmaEngine
from jupyter_gemma.engine.sampling import load_defaults
from jupyter_gemma.errors import BadCheckpoint, BadOption
from jupyter_gemma.finetune.export import export
from jupyter_gemma.model.adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS, MergedSource, read_adapter
from jupyter_gemma.model.checkpoint import load, open_source
from jupyter_gemma.types import Message, ModelCard, Request, Sampling, TextPart


@pytest.fixture
def adapters(start, tmp_path):
    """A folder with two adapters, "one" and "two", that change much."""
    folder = tmp_path / "adapters"
    for seed, name in enumerate(("one", "two")):
        training = start(out=str(folder / name))
        torch.manual_seed(seed)
        for weight in training.learning.values():
            weight.data += 0.15 * torch.randn_like(weight)
        training._write_result()
    return folder


def question(adapter="", text="How many rows are there?"):
    return Request(
        (Message("user", (TextPart(text),)),), sampling=Sampling(temperature=0, max_tokens=12), adapter=adapter
    )


@pytest.fixture
def make_engine(open_base):
    engines = []

    def make(folder=None, default="", path=None, quantization="none"):
        base = open_base(quantization, path)
        shelf = Shelf(base.loaded.model, folder, default)
        defaults = load_defaults(base.path)
        engines.append(GemmaEngine(ModelCard("tiny"), base.loaded.model, base.builder, defaults, adapters=shelf))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


def text_of(engine, request):
    return "".join(chunk.text for chunk in engine.stream(request, threading.Event()))


def prompts_of(base, write_lines, conversations):
    from jupyter_gemma.finetune.data import Lines

    lines = Lines(write_lines(conversations))
    return [example.prompt for index in range(len(lines)) for example in lines.examples(index, base.builder)]


@pytest.mark.parametrize("form", ["safetensors", "packed"])
def test_a_merged_model_holds_the_sums_rounded_once(tiny, adapters, tmp_path, form):
    source = open_source(tiny[1])
    merged = MergedSource(source, read_adapter(adapters / "one", source.config))
    export(tiny[1], adapters / "one", tmp_path / "merged", form, lambda progress: None)
    model = load(tmp_path / "merged", quantization="none", device="cpu").model
    for name, weight in model.named_parameters():
        assert torch.equal(weight, merged.read(name).bfloat16().float()), name
        changed = not torch.equal(weight, source.read(name).bfloat16().float())
        assert changed == (name.removesuffix(".weight") in merged.adapter), name
    assert (tmp_path / "merged" / "chat_template.jinja").exists()


def test_merged_weights_give_the_same_logits(tiny, open_base, write_lines, conversations, adapters):
    base, merged = open_base(), open_base()
    key = Shelf(base.loaded.model, adapters).take("two")
    source = MergedSource(open_source(tiny[1]), read_adapter(adapters / "two", base.loaded.config))
    with torch.no_grad():
        for name, weight in merged.loaded.model.named_parameters():
            weight.copy_(source.read(name).float())
        for prompt in prompts_of(base, write_lines, conversations):
            ours, theirs = adapted_logits(base.loaded.model, prompt, key), merged.loaded.model.logits_of(prompt)
            assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()


def adapted_logits(model, prompt, key):
    from dataclasses import replace

    from jupyter_gemma.model.cache import SequenceCache
    from jupyter_gemma.model.decoder import Span

    prompt = replace(prompt, soft=tuple(replace(media, adapter=key) for media in prompt.soft))
    span = Span(len(prompt.ids), SequenceCache.for_model(model.config), prompt.blocks(), key)
    return model.logits(model(model.embed(prompt), [span]))


@pytest.mark.parametrize("quantization", ["none", "int4"])
def test_requests_choose_and_share_a_pass(make_engine, adapters, quantization):
    """The same question with different adapters, asked at once, is answered as when it is asked alone."""
    wanted = ["", "one", "two", "none", "one"]
    alone = [text_of(make_engine(adapters, quantization=quantization), question(name)) for name in wanted]
    assert len(set(alone)) == 3
    engine = make_engine(adapters, quantization=quantization)
    found = [""] * len(wanted)

    def ask(place):
        found[place] = text_of(engine, question(wanted[place]))

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(len(wanted))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == alone
    assert engine.status().cache_hits <= 2, "nothing computed with another adapter is reused"
    assert text_of(engine, question("two")) == alone[2], "asked again, from what is kept"


def test_the_default_is_a_name_or_a_folder_and_none_is_the_plain_model(make_engine, adapters):
    plain, one = text_of(make_engine(), question()), text_of(make_engine(adapters), question("one"))
    assert text_of(make_engine(adapters, "one"), question()) == one
    assert text_of(make_engine(None, str(adapters / "one")), question()) == one
    assert text_of(make_engine(adapters, "one"), question("none")) == plain


def test_an_adapter_that_was_trained_again_is_read_again(make_engine, adapters):
    engine = make_engine(adapters)
    before = text_of(engine, question("one"))
    shutil.copytree(adapters / "two", adapters / "one", dirs_exist_ok=True)
    assert text_of(engine, question("one")) == text_of(engine, question("two")) != before


@pytest.mark.parametrize("name", ["three", "../adapters/one", "one/"])
def test_only_names_in_the_folder_can_be_asked_for(make_engine, adapters, name):
    with pytest.raises(BadOption, match="There are: one, two, none"):
        text_of(make_engine(adapters), question(name))


def test_what_does_not_fit_is_named(make_engine, adapters, tiny):
    from safetensors.torch import load_file, save_file

    engine = make_engine(adapters)
    file = adapters / "one" / ADAPTER_WEIGHTS
    tensors = load_file(file)
    key = next(key for key in tensors if "layers.1.mlp.up_proj.lora_B" in key)
    save_file({**tensors, key: tensors[key][:8].clone()}, file)
    with pytest.raises(BadCheckpoint, match=r"layers.1.mlp.up_proj has shapes \[4, 64\] and \[8, 4\].*\[96, 64\]"):
        text_of(engine, question("one"))
    save_file({**tensors, "base_model.model.lm_head.lora_A.weight": tensors[key].clone()}, file)
    with pytest.raises(BadCheckpoint, match=r"lm_head.*no place"):
        text_of(engine, question("one"))
    settings = json.loads((adapters / "two" / ADAPTER_CONFIG).read_text())
    (adapters / "two" / ADAPTER_CONFIG).write_text(json.dumps({**settings, "use_dora": True}))
    with pytest.raises(BadCheckpoint, match="use_dora=True"):
        text_of(engine, question("two"))


def test_the_wire_carries_the_name():
    from jupyter_gemma.wire.request import parse_request, request_body

    body = request_body(question("one"))
    assert body["adapter"] == "one"
    assert parse_request(body).adapter == "one"
    assert "adapter" not in request_body(question())
