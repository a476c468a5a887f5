"""Rivals' own environments, made on demand below the user's cache: nothing of theirs is installed beside ours.

Versions are pinned here; a change of them, or of the interpreter, makes a new environment.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

COMMON: Final = ("aiohttp==3.14.5", "uvloop==0.23.0")
PACKAGES: Final = {
    "dbos": ("dbos==3.4.0", *COMMON),
    "absurd": ("absurd-sdk==0.5.1", "absurdctl==0.5.1", *COMMON),
    "restate": ("restate-sdk==1.3.0", "hypercorn==0.18.0", "uvloop==0.23.0"),
}
RESTATE_SERVER: Final = "@restatedev/restate-server@1.7.12"


class Unavailable(Exception):
    """A rival cannot be installed here."""


def versions(name: str) -> str:
    """Say what of a rival is measured."""
    ours = [package for package in PACKAGES[name] if package not in COMMON]
    return ", ".join([*ours, *([RESTATE_SERVER] if name == "restate" else [])])


def find_python(name: str) -> Path:
    """Return the interpreter of a rival's environment, made if it is not there. Raises Unavailable."""
    mark = "-".join(part.replace("==", "-") for part in PACKAGES[name][:2])
    interpreter = hashlib.sha256(os.path.realpath(sys.executable).encode()).hexdigest()[:8]
    folder = _cache() / f"{mark}-{interpreter}"
    if not (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        python = str(folder / "bin" / "python")
        _run(sys.executable, "-m", "uv", "venv", "--quiet", "--python", sys.executable, str(folder))
        _run(
            *(sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", python),
            *PACKAGES[name],
        )
        (folder / "complete").touch()
    return folder / "bin" / "python"


def find_restate_server() -> Path:
    """Return Restate's server, which npm has as a binary. Raises Unavailable."""
    folder = _cache() / RESTATE_SERVER.rpartition("/")[2]
    found = list(folder.glob("node_modules/@restatedev/restate-server-*/bin/restate-server"))
    if not found:
        if shutil.which("npm") is None:
            raise Unavailable("npm is not installed: Restate's server comes from there")
        folder.mkdir(parents=True, exist_ok=True)
        _run(
            *("npm", "install", "--prefix", str(folder), "--silent", "--ignore-scripts"),
            *("--no-audit", "--no-fund", RESTATE_SERVER),
        )
        found = list(folder.glob("node_modules/@restatedev/restate-server-*/bin/restate-server"))
    if not found:
        raise Unavailable("there is no Restate server for this machine")
    return found[0]


def _cache() -> Path:
    above = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return above / "smithers-bench"


def _run(*command: str) -> None:
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise Unavailable(f"{' '.join(command[:5])} …: {ran.stderr.strip()[-300:]}")
