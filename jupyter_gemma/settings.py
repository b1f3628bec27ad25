"""Settings: arguments win over environment variables, those over config files; an unknown key is an error.

Each trait of :class:`Settings` can be given as an argument (``--model``), as ``JUPYTER_GEMMA_MODEL``, or in
``jupyter_gemma_config.json`` / ``.py`` in Jupyter's config path under the class name ``Settings``.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jupyter_core.paths import jupyter_config_path, jupyter_data_dir, jupyter_runtime_dir
from traitlets import Bool, Dict, Enum, Float, Int, TraitError, Unicode
from traitlets.config import Config, Configurable
from traitlets.config.loader import ConfigFileNotFound, FileConfigLoader, JSONFileConfigLoader, PyFileConfigLoader

from jupyter_gemma.errors import BadOption

ENV_PREFIX = "JUPYTER_GEMMA_"
CONFIG_NAME = "jupyter_gemma_config"


class Settings(Configurable):
    """What a user may choose, for the server and for its clients."""

    model = Unicode("", help="Model to use; empty: the largest one installed, else the built-in demo.").tag(config=True)
    models_dir = Unicode(help="Folder of downloaded models.").tag(config=True)
    runtime_dir = Unicode(help="Folder of the server file, its lock and its log.").tag(config=True)
    base_url = Unicode("", help="An OpenAI-compatible server to use instead of the local one.").tag(config=True)
    api_key = Unicode("", help="Key for base_url.").tag(config=True)
    start_server = Bool(True, help="Start the local server when a client needs it.").tag(config=True)
    start_timeout = Float(120.0, help="Seconds to wait for a new server to listen.").tag(config=True)
    engine = Enum(
        ["gemma", "echo"], "gemma", help="What the server answers with; echo: a test engine that repeats what it gets."
    ).tag(config=True)
    port = Int(0, help="Port of the server on 127.0.0.1; 0: any free one.").tag(config=True)
    unix_socket = Unicode("", help="Path of a Unix socket on which the server listens too; empty: none.").tag(
        config=True
    )
    adapter = Unicode(
        "", help="Adapter of answers that name none: a name in adapters_dir, or the folder itself; empty: none."
    ).tag(config=True)
    adapters_dir = Unicode(help="Folder of adapters, which requests can name.").tag(config=True)
    keep_alive = Float(900.0, help="Seconds without a question after which the model is unloaded; -1: never.").tag(
        config=True
    )
    idle_exit = Float(43200.0, help="Seconds without a question after which the server ends; -1: never.").tag(
        config=True
    )
    log_prompts = Bool(False, help="Write questions and answers into the server's log.").tag(config=True)
    device = Enum(["auto", "cpu", "cuda", "mps"], "auto", help="Where to compute.").tag(config=True)
    quantization = Enum(
        ["auto", "none", "int8", "int4"],
        "auto",
        help="auto: int4 from one thousand million parameters on, smaller models as they are.",
    ).tag(config=True)
    max_memory = Dict(
        key_trait=Unicode(), help='Limit per device, as {"cpu": "6GB"}; what does not fit is read from disk.'
    ).tag(config=True)
    context_length = Int(0, help="Tokens a conversation may have; 0: what the model allows.").tag(config=True)
    cache_memory = Unicode(
        "",
        help='Memory for the keys and values of running and kept conversations, as "4GB"; '
        "empty: half of what is free once the model is loaded.",
    ).tag(config=True)
    cache_type = Enum(
        ["auto", "int8"],
        "auto",
        help="How those keys and values are stored. auto: in bfloat16 where the weights have 4 bits, else as computed; "
        "int8: in half of that, and a little less exact.",
    ).tag(config=True)
    max_waiting = Int(256, help="Requests that may wait for their turn; more are refused.").tag(config=True)
    prefill_chunk = Int(256, help="Prompt tokens computed between two looks at Stop.").tag(config=True)
    ops = Enum(["auto", "plain"], "auto", help="plain: compute with ordinary torch only, no fast kernels.").tag(
        config=True
    )
    speculation = Enum(
        ["auto", "off", "lookup", "drafter"],
        "auto",
        help="Guess tokens and check several in one pass, with the same answers. lookup: guesses from the text so far; "
        "drafter: from the model's own drafter; auto: whichever there is, where it pays.",
    ).tag(config=True)
    drafter = Unicode("", help="Folder of the drafter; empty: the model's name with -assistant, if that is there.").tag(
        config=True
    )
    threads = Int(0, help="CPU threads; 0: all physical cores.").tag(config=True)

    def _models_dir_default(self) -> str:
        return str(Path(jupyter_data_dir()) / "gemma" / "models")

    def _adapters_dir_default(self) -> str:
        return str(Path(jupyter_data_dir()) / "gemma" / "adapters")

    def _runtime_dir_default(self) -> str:
        return str(jupyter_runtime_dir())


def load_settings(arguments: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """Merge config files, environment and arguments.

    Args:
        arguments: trait name -> value, as given on a command line or by a caller; None values are skipped.
        environ: defaults to ``os.environ``.

    Raises:
        BadOption: a key no trait has (the nearest is named), or a value its trait refuses.
    """
    values: dict[str, Any] = {}
    values.update(_from_files())
    values.update(_from_environment(os.environ if environ is None else environ))
    values.update({key: value for key, value in (arguments or {}).items() if value is not None})
    names = Settings.class_trait_names(config=True)
    for key in values:
        if key not in names:
            raise _unknown(key, names)
    try:
        return Settings(config=Config({"Settings": values}))
    except (TraitError, ValueError) as error:
        raise BadOption(f"A setting has a wrong value: {error}.", "See jupyter gemma serve --help-all.") from error


def parse_setting(key: str, text: str) -> Any:
    """The value of trait ``key`` that ``text`` stands for, in the environment or on a command line.

    Raises:
        BadOption: ``text`` is no such value.
    """
    try:
        return Settings.class_traits(config=True)[key].from_string(text)
    except (TraitError, ValueError) as error:
        raise BadOption(f"The setting {key} cannot be {text!r}: {error}.") from error


def _unknown(key: str, names: list[str]) -> BadOption:
    near = difflib.get_close_matches(key, names, n=1)
    hint = f"Did you mean {near[0]}?" if near else f"Known settings: {', '.join(sorted(names))}."
    return BadOption(f"There is no setting {key!r}.", hint)


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    traits = Settings.class_traits(config=True)
    for name, text in environ.items():
        if name.startswith(ENV_PREFIX):
            key = name.removeprefix(ENV_PREFIX).lower()
            found[key] = parse_setting(key, text) if key in traits else text
    return found


def _from_files() -> dict[str, Any]:
    found = Config()
    for folder in reversed(jupyter_config_path()):
        found.merge(_from_file(JSONFileConfigLoader(f"{CONFIG_NAME}.json", folder)))
        found.merge(_from_file(PyFileConfigLoader(f"{CONFIG_NAME}.py", folder)))
    for section, values in found.items():
        if section != "Settings" or not isinstance(values, dict):
            raise BadOption(f"{CONFIG_NAME} has a section {section!r}.", "The only section is Settings, with its keys.")
    return dict(found.get("Settings", {}))


def _from_file(loader: FileConfigLoader) -> Config:
    try:
        return loader.load_config()
    except ConfigFileNotFound:
        return Config()
    except Exception as error:
        raise BadOption(f"{loader.full_filename} cannot be read: {error!r}.", "Correct the file.") from error
