"""``jupyter gemma``: the model server and the models, from a terminal. The only place that builds and connects objects.

What a command needs is imported in its function, so that each starts fast and none but ``serve`` loads the engine.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import functools
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

from jupyter_gemma.errors import BadOption, GemmaError, RequestError, ServerError, ServerStartFailed
from jupyter_gemma.finetune.plan import Plan, make_plan, read_plan
from jupyter_gemma.settings import Settings, load_settings, parse_setting
from jupyter_gemma.types import Engine, ModelCard, Progress, ProgressCallback

if TYPE_CHECKING:
    from jupyter_gemma.engine.engine import GemmaEngine
    from jupyter_gemma.finetune.evaluate import Subject
    from jupyter_gemma.finetune.train import Base
    from jupyter_gemma.model.placement import DeviceName
    from jupyter_gemma.server.worker import Worker
    from jupyter_gemma.store import InstalledModel

FAILED, USAGE, INTERRUPTED = 1, 2, 130
FOLLOW_SECONDS = 0.2


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status: 0 well, 1 failed, 2 wrong usage, 130 interrupted."""
    try:
        arguments = _parser().parse_args(argv)
        given = {key.removeprefix("setting_"): value for key, value in vars(arguments).items() if "setting_" in key}
        arguments.run(load_settings(given), arguments)
    except GemmaError as error:
        print(f"{error.message}\n{error.fix}".rstrip(), file=sys.stderr)
        return USAGE if isinstance(error, BadOption) else FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


# -- what can be typed -------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("jupyter gemma", description="The model server and the models of jupyter-gemma.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    options = _settings_options()

    def add(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text, parents=[options], allow_abbrev=False)
        command.set_defaults(run=run)
        return command

    serve = add("serve", _serve, "Run the model server here until Ctrl-C.")
    serve.add_argument("--detach", action="store_true", help="Start it in the background instead, unless one runs.")
    serve.add_argument("--log", help="File to write the log into, instead of stderr; it is rotated.")
    add("status", _status, "Say whether the model server runs and what it does.")
    add("stop", _stop, "End the model server.")
    logs = add("logs", _logs, "Print the end of the log of the server in the background.")
    logs.add_argument("-n", "--lines", type=int, default=50, help="How many lines.")
    logs.add_argument("-f", "--follow", action="store_true", help="Go on until Ctrl-C.")
    add("doctor", _doctor, "Look for what could be in the way, and say the way out.")
    load = add("load", _load, "Load a model into the server, starting it if need be.")
    load.add_argument("name", nargs="?", default="", help="Its name; by default the one that would be used.")
    add("unload", _unload, "Free the memory of the loaded model.")
    add("models", _models, "List the models of this machine.")
    pull = add("pull", _pull, "Download a model, or continue to.")
    pull.add_argument("name", nargs="?", help="Repository on the hub; by default Gemma 4 12B.")
    pull.add_argument("--revision", help="Branch, tag or commit; by default main.")
    add("rm", _rm, "Delete a downloaded model.").add_argument("name", help="Its name.")
    judge = add("eval", _eval, "Ask models questions whose answers are known, and say how many were right.")
    judge.add_argument("names", nargs="*", metavar="NAME", help='One or several models; "demo:int8" quantises one.')
    judge.add_argument("--suite", action="append", default=[], metavar="SUITE", help="As charts; by default all.")
    judge.add_argument("--data", help="File of conversations to ask instead; their last turns are the right answers.")
    tune = add("finetune", _finetune, "Teach a model something new, from conversations in a file.")
    tune.add_argument("config", nargs="?", help="TOML file with the keys of a run, which are also the options here.")
    for key in fields(Plan):
        if key.name not in ("model", "checkpointing"):
            option = f"--{key.name.replace('_', '-')}"
            tune.add_argument(option, dest=f"plan_{key.name}", type=type(key.default), metavar="VALUE")
    tune.add_argument("--checkpointing", dest="plan_checkpointing", action="store_true", default=None)
    data = add("data", _data, "Write the accepted answers of notebooks into a file to learn from.")
    data.add_argument("notebooks", nargs="+", metavar="NOTEBOOK", help="Notebook files, as they were saved.")
    data.add_argument("--out", default="conversations.jsonl", help="The new file; by default conversations.jsonl.")
    merge = add("merge", _merge, "Write a model with an adapter merged into it, as a model of its own.")
    merge.add_argument("name", help="Name of the adapter, or its folder.")
    merge.add_argument("out", help="Name of the new model, or a folder for it.")
    merge.add_argument("--form", choices=("safetensors", "packed"), default="safetensors")
    bench = add("bench", _bench, "Measure speed and memory, with random weights of the real model's shape.")
    bench.add_argument("names", nargs="*", metavar="NAME", help="As decode or compare; by default all.")
    bench.add_argument("--shape", default="12b-12", help='By default "12b-12", the first 12 layers of the 12B.')
    bench.add_argument("--dir", help="Folder that keeps the files with weights for the next time (up to 18 GB).")
    bench.add_argument("--quick", action="store_true", help="A tiny shape: checks that all can be run.")
    bench.add_argument("--out", help="File for the figures, which are also the last line printed.")
    return parser


def _settings_options() -> argparse.ArgumentParser:
    """One option per trait of Settings."""
    options = argparse.ArgumentParser(add_help=False)
    group = options.add_argument_group(
        "settings", "Also as JUPYTER_GEMMA_… in the environment or in jupyter_gemma_config."
    )
    for key, trait in sorted(Settings.class_traits(config=True).items()):
        group.add_argument(
            f"--{key.replace('_', '-')}",
            dest=f"setting_{key}",
            type=functools.partial(parse_setting, key),
            metavar="VALUE",
            help=trait.help.replace("%", "%%"),
        )
    return options


# -- the server --------------------------------------------------------------------------------------------------


def _serve(settings: Settings, arguments: argparse.Namespace) -> None:
    from jupyter_gemma.discovery import find_or_start, running_server, server_file

    if arguments.detach:
        with _ProgressLine() as report:
            server = find_or_start(settings, report)
        print(f"The model server runs at {server.url} (process {server.pid}).")
        return
    if server_running := running_server(settings):
        raise ServerStartFailed(
            f"A model server runs already, at {server_running.url} (process {server_running.pid}).",
            "Use it, or end it first: jupyter gemma stop",
        )
    print(f"Serving; the address and the token are in {server_file(settings)}.", flush=True)
    _run_server(settings, Path(arguments.log) if arguments.log else None)


def _run_server(settings: Settings, log: Path | None) -> None:
    from importlib.metadata import version

    from jupyter_gemma.server.app import serve
    from jupyter_gemma.server.log import set_up

    set_up(settings.log_prompts, log)
    signal.signal(signal.SIGTERM, _exit)
    serve(_worker(settings), settings, version("jupyter-gemma"))


def _exit(number: int, frame: object) -> NoReturn:
    """End as if by sys.exit, so that the server file is removed."""
    raise SystemExit(0)


def _worker(settings: Settings) -> Worker:
    from jupyter_gemma.server.worker import Worker

    if settings.engine == "echo":
        from jupyter_gemma.echo import ECHO_MODELS, find_echo, load_echo

        return Worker(
            load_echo, lambda: ECHO_MODELS, lambda name: find_echo(name or settings.model), settings.keep_alive
        )
    from jupyter_gemma.store import find_model

    return Worker(
        functools.partial(_load_engine, settings),
        lambda: _cards(settings),
        lambda name: find_model(name, settings).card,
        settings.keep_alive,
    )


def _cards(settings: Settings) -> list[ModelCard]:
    """The cards of all usable models. The default comes first: clients that name no model take its card."""
    from jupyter_gemma.store import find_model, list_models

    default = find_model("", settings).name
    cards = [model.card for model in list_models(settings) if not model.problem]
    return sorted(cards, key=lambda card: card.name != default)


def _load_engine(settings: Settings, name: str, progress: ProgressCallback) -> Engine:
    from jupyter_gemma.store import find_model

    return _load_gemma(settings, find_model(name, settings), progress)


def _load_gemma(settings: Settings, model: InstalledModel, progress: ProgressCallback) -> GemmaEngine:
    _calm_threads()
    from jupyter_gemma.engine.engine import load_engine
    from jupyter_gemma.store import prepare

    return load_engine(prepare(model, progress), model.card, settings, progress)


def _status(settings: Settings, arguments: argparse.Namespace) -> None:
    from jupyter_gemma.client import Client

    status = Client(settings).status()
    engine = status.pop("engine", None) or {}
    for key, value in {**status, **engine}.items():
        if value not in (None, ""):
            print(f"{key}: {_size(value) if key.endswith(('_bytes', '_limit')) else value}")


def _stop(settings: Settings, arguments: argparse.Namespace) -> None:
    from jupyter_gemma.client import Client

    print("The model server ends." if Client(settings).stop_server() else "No model server is running.")


def _logs(settings: Settings, arguments: argparse.Namespace) -> None:
    from jupyter_gemma.discovery import log_file

    path = log_file(settings)
    if not path.exists():
        raise ServerError(
            f"There is no log {path}.", "A server in the background writes one: jupyter gemma serve --detach"
        )
    stream = path.open(encoding="utf-8", errors="replace")
    print("".join(collections.deque(stream, maxlen=max(arguments.lines, 0))), end="", flush=True)
    while arguments.follow:
        time.sleep(FOLLOW_SECONDS)
        rotated = path.exists() and not os.path.samestat(os.fstat(stream.fileno()), path.stat())
        print(stream.read(), end="", flush=True)
        if rotated:
            stream.close()
            stream = path.open(encoding="utf-8", errors="replace")
    stream.close()


def _doctor(settings: Settings, arguments: argparse.Namespace) -> None:
    from jupyter_gemma.doctor import examine

    ill = 0
    for finding in examine(settings):
        print(f"{'ok ' if finding.well else 'BAD'}  {finding.name}: {finding.seen}", flush=True)
        if not finding.well:
            ill += 1
            print(f"     {finding.fix}", flush=True)
    if ill:
        raise ServerError(f"{ill} thing{'s' if ill > 1 else ''} to look at.")


def _load(settings: Settings, arguments: argparse.Namespace) -> None:
    from jupyter_gemma.client import Client

    with _ProgressLine() as report:
        status = Client(settings, report).load(arguments.name, report)
    print(f"{status['model']} is loaded.")


def _unload(settings: Settings, arguments: argparse.Namespace) -> None:
    from jupyter_gemma.client import Client

    stopped = Client(settings).unload()["state"] == "stopped"
    print("No model server is running." if stopped else "No model is loaded now.")


# -- the models --------------------------------------------------------------------------------------------------


def _models(settings: Settings, arguments: argparse.Namespace) -> None:
    from jupyter_gemma.store import find_model, list_models

    default = find_model("", settings).name
    rows = [("", "NAME", "SIZE", "TAKES", "")]
    for model in list_models(settings):
        takes = ", ".join(model.card.modalities)
        mark = "*" if model.name == default else ""
        rows.append((mark, model.name, _size(model.size_bytes), takes, model.problem or model.card.notice))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _pull(settings: Settings, arguments: argparse.Namespace) -> None:
    from jupyter_gemma.pull import pull_model
    from jupyter_gemma.store import REAL_MODEL

    with _ProgressLine() as report:
        model = pull_model(arguments.name or REAL_MODEL, settings, report, revision=arguments.revision)
    print(f"{model.name} is installed ({_size(model.size_bytes)}).")


def _rm(settings: Settings, arguments: argparse.Namespace) -> None:
    from jupyter_gemma.store import remove_model

    model = remove_model(arguments.name, settings)
    print(f"{model.name} is deleted ({_size(model.size_bytes)}).")


# -- teaching --------------------------------------------------------------------------------------------------


def _eval(settings: Settings, arguments: argparse.Namespace) -> None:
    from jupyter_gemma.finetune.evaluate import evaluate, figures_json, table

    own = Path(arguments.data) if arguments.data else None
    results = {}
    with _ProgressLine() as report:
        for name in arguments.names or [""]:
            with _subject(settings, name, report) as subject:
                results[subject.name] = evaluate(subject, arguments.suite, own, report)
    print(*table(results), json.dumps(figures_json(results)), sep="\n")


@contextlib.contextmanager
def _subject(settings: Settings, name: str, progress: ProgressCallback) -> Iterator[Subject]:
    """The model ``name`` to be asked: here, as the server would load it, or through the server of ``base_url``."""
    from jupyter_gemma.client import Client
    from jupyter_gemma.finetune.evaluate import Subject

    if settings.base_url:
        client = Client(settings, progress)
        yield Subject(
            name or settings.model or "model",
            lambda request: client.stream(replace(request, model=name, adapter=settings.adapter)),
        )
        return
    from jupyter_gemma.store import find_model

    base, _, quantization = name.partition(":")
    given = settings.trait_values(config=True)
    chosen = load_settings({**given, "quantization": quantization or settings.quantization})
    model = find_model(base, chosen)
    with contextlib.closing(_load_gemma(chosen, model, progress)) as engine:
        stopped = threading.Event()
        # A perplexity would be that of the model without its adapter.
        plain = None if settings.adapter not in ("", "none") else engine
        yield Subject(name or model.name, lambda request: engine.stream(request, stopped), plain)


def _data(settings: Settings, arguments: argparse.Namespace) -> None:
    from jupyter_gemma.notebook.harvest import harvest
    from jupyter_gemma.notebook.lessons import write_lessons

    out = Path(arguments.out)
    if out.exists():
        raise BadOption(f"{out} is there already, and may have been corrected by hand.", "Name another one: --out FILE")
    lessons, left = harvest([Path(name) for name in arguments.notebooks])
    for reason in left:
        print(f"Left out, {reason}.", file=sys.stderr)
    if not lessons:
        raise RequestError("There is no answer to learn from.", "Ask with %gemma and save the notebook first.")
    write_lessons(lessons, out)
    print(f"{out} has {len(lessons)} conversations; {len(left)} answers were left out.")


def _finetune(settings: Settings, arguments: argparse.Namespace) -> None:
    _calm_threads()
    from jupyter_gemma.finetune.train import Training

    given = read_plan(Path(arguments.config)) if arguments.config else {}
    options = {key.removeprefix("plan_"): value for key, value in vars(arguments).items() if key.startswith("plan_")}
    plan = make_plan({**given, **{key: value for key, value in options.items() if value is not None}})
    if not plan.data:
        raise BadOption("There is no data to learn from.", "jupyter gemma finetune --data conversations.jsonl")
    name = plan.out or Path(plan.data).stem
    plan = replace(plan, out=str(_place(name, Path(settings.adapters_dir), Path(settings.models_dir), plan)))
    with _ProgressLine() as report:
        training = Training(_base(settings, plan, report), plan, report)
        state = training.run()
    best = f", best held-out loss {state.best:.4f}" if plan.valid else ""
    print(f"{state.step} steps done{best}. The result is in {plan.out}.")


def _place(name: str, adapters: Path, models: Path, plan: Plan) -> Path:
    """A name alone stands for a place where the result is found by its name."""
    if Path(name).name != name:
        return Path(name)
    return (models if plan.method == "full" else adapters) / name


def _base(settings: Settings, plan: Plan, report: ProgressCallback) -> Base:
    import torch

    from jupyter_gemma.engine.engine import load_builder
    from jupyter_gemma.finetune.train import Base
    from jupyter_gemma.model.checkpoint import load
    from jupyter_gemma.store import find_model, prepare

    if settings.threads:
        torch.set_num_threads(settings.threads)
    model = find_model(plan.model or settings.model, settings)
    path = prepare(model, report)
    packed = Path(settings.models_dir) / ".packed" / model.name
    loaded = load(
        path,
        quantization="int4" if plan.method == "qlora" else "none",
        device=cast("DeviceName", settings.device),
        cache_dir=packed,
        progress=report,
    )
    builder = load_builder(path, loaded.config, model.card, settings.context_length)
    return Base(loaded, builder, path, model.name)


def _merge(settings: Settings, arguments: argparse.Namespace) -> None:
    from jupyter_gemma.finetune.export import export
    from jupyter_gemma.store import find_model, prepare

    given = Path(arguments.name)
    adapter = given if given.is_dir() else Path(settings.adapters_dir) / arguments.name
    out = Path(arguments.out)
    out = Path(settings.models_dir) / out if out.name == arguments.out else out
    with _ProgressLine() as report:
        export(prepare(find_model("", settings), report), adapter, out, arguments.form, report)
    print(f"The merged model is in {out}.")


# -- measuring ---------------------------------------------------------------------------------------------------


def _bench(settings: Settings, arguments: argparse.Namespace) -> None:
    _calm_threads()
    from jupyter_gemma.bench.run import run
    from jupyter_gemma.bench.subject import options

    with tempfile.TemporaryDirectory(prefix="jupyter-gemma-bench-") as temporary, _ProgressLine() as report:
        folder = Path(arguments.dir or temporary)
        chosen = options(arguments.shape, folder, report, quick=arguments.quick, threads=settings.threads)
        for line in run(arguments.names, chosen):
            print(line, flush=True)
    if arguments.out:
        Path(arguments.out).write_text(f"{line}\n", encoding="utf-8")


def _calm_threads() -> None:
    """Let OpenMP's threads sleep when they have nothing to do. To be called before torch is loaded.

    By default they go on spinning for a while, and take the cores from the threads of the compute kernels.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


# -- words for people --------------------------------------------------------------------------------------------


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.3g} {unit}"


class _ProgressLine:
    """Shows progress on stderr: one line that is written over in a terminal, a line per phase elsewhere."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._shown = ""

    def __enter__(self) -> ProgressCallback:
        return self._report

    def __exit__(self, *error: object) -> None:
        if self._terminal and self._shown:
            print(file=sys.stderr)

    def _report(self, progress: Progress) -> None:
        text = progress.phase
        if self._terminal and progress.total:
            text += f"  {100 * progress.done // progress.total} %"
        if text == self._shown:
            return
        width = len(self._shown)
        self._shown = text
        print(
            f"\r{text.ljust(width)}" if self._terminal else text,
            end="" if self._terminal else "\n",
            file=sys.stderr,
            flush=True,
        )
