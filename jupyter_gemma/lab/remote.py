"""Another server to answer: its address and key lie in Jupyter's config folder and never go to the browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from jupyter_core.paths import jupyter_config_dir

from jupyter_gemma.errors import BadOption
from jupyter_gemma.lab.files import UNREADABLE, read_json, write_json
from jupyter_gemma.settings import CONFIG_NAME, Settings, load_settings


def remote_of(settings: Settings) -> dict[str, Any]:
    """What the panel may know: the address, and whether there is a key."""
    return {"base_url": settings.base_url, "has_key": bool(settings.api_key)}


def set_remote(base_url: str, api_key: str | None) -> Settings:
    """Save the address ("": the local server) and the key (None: as it is); the settings as they are then.

    Raises:
        BadOption: the address is none, or the config file cannot be read.
    """
    if base_url and (urlsplit(base_url).scheme not in ("http", "https") or not urlsplit(base_url).hostname):
        raise BadOption(f"{base_url!r} is no address.", "Write http://host:port/v1.")
    path = Path(jupyter_config_dir()) / f"{CONFIG_NAME}.json"
    try:
        config = read_json(path) if path.exists() else {}
    except UNREADABLE as error:
        raise BadOption(f"{path} cannot be read: {error}.", "Correct the file.") from error
    values = {**config.get("Settings", {}), "base_url": base_url}
    if api_key is not None or not base_url:
        values["api_key"] = api_key or ""
    write_json(path, {**config, "Settings": values})
    return load_settings()
