"""Builds the JupyterLab panel where Node.js is installed, and puts it into the wheel; without Node it is left out."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCES = ("src", "style", "schema", "package.json", "package-lock.json", "install.json", "tsconfig.json")
BUNDLE = "jupyter_gemma/labextension"
INSTALLED = "share/jupyter/labextensions/jupyter-gemma"


class PanelHook(BuildHookInterface):  # type: ignore[type-arg]
    """The build hook that ``pyproject.toml`` names ``custom``."""

    def dependencies(self) -> list[str]:
        """What the panel's build needs beside Node."""
        return ["jupyter_builder>=1.3"] if _npm() else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Bring the bundle up to date, and let a wheel install it."""
        source, bundle = Path(self.root, "labextension"), Path(self.root, BUNDLE)
        if _is_old(source, bundle) and _npm():
            _build(source)
        if not (bundle / "package.json").is_file():
            self.app.display_warning("Node.js is not installed: everything but the JupyterLab panel gets built.")
        elif self.target_name == "wheel":
            build_data["shared_data"][str(bundle)] = INSTALLED


def _npm() -> str | None:
    return shutil.which("npm") if shutil.which("node") else None


def _is_old(source: Path, bundle: Path) -> bool:
    """Whether the bundle is missing, older than a source, or a development build with source maps."""
    made = bundle / "package.json"
    if not made.is_file() or any(bundle.rglob("*.map")):
        return True
    roots = [source / name for name in SOURCES]
    files = [file for root in roots for file in (root.rglob("*") if root.is_dir() else [root])]
    return max(file.stat().st_mtime for file in files) > made.stat().st_mtime


def _build(source: Path) -> None:
    """Run npm; the build environment's own programs are found first."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    wanted, installed = source / "package-lock.json", source / "node_modules" / ".package-lock.json"
    steps = [["run", "build:prod"]]
    if not installed.is_file() or installed.stat().st_mtime < wanted.stat().st_mtime:
        steps.insert(0, ["ci", "--no-audit", "--no-fund"])
    for words in steps:
        subprocess.run([str(_npm()), *words], cwd=source, env={**os.environ, "PATH": path}, check=True)
