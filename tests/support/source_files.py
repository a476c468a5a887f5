"""Writes the files of a workflow below a root, and forgets what was loaded of them."""

import sys
from collections.abc import Mapping
from pathlib import Path
from textwrap import dedent

from smithers.source.version import VERSION_ATTRIBUTE, LoadedVersion, package_name


def write_files(root: Path, files: Mapping[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else dedent(content).encode())
    return root


def unload(source_hash: str) -> None:
    """Forget a version, if it is loaded; code of it that still runs keeps what it has."""
    package = sys.modules.get(package_name(source_hash))
    if package is not None:
        version: LoadedVersion = vars(package)[VERSION_ATTRIBUTE]
        with version.lock:
            version.unload()
