"""Where the server's own code is: if it is below the root, nobody may write to it.

The jailer, the children and later processes run from there, without a jail. So it is read-only in a jail's mounts and
for the tools that write, and a root that cannot be separated from it is refused for commands.
"""

import os
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

# If the root is a checkout itself, these are read-only and the rest is writable.
PACKAGES: Final = ("gateway", "migrations", "smithers", "worker")
_CODE: Final = Path(__file__).parents[2]


def find_closed(root: Path) -> tuple[Path, ...]:
    """Return the directories below a root (a real path) that hold the server's code: real paths, the outermost only."""
    code = _CODE.resolve()
    found = {place.resolve() for place in _interpreter()}
    found |= {code / name for name in PACKAGES} if code == root else {code}
    below = {place for place in found if place.is_relative_to(root) and place.is_dir()}
    return tuple(sorted(place for place in below if below.isdisjoint(place.parents)))


def find_exposure(root: Path) -> str | None:
    """Say why the server's code cannot be made read-only below a root (a real path); None if it can."""
    if root in {place.resolve() for place in _interpreter()}:
        return f"the root directory is {root}, where Python is installed"
    for place in (*_interpreter(), _CODE):
        for link in _links_on(place):
            # A mount protects a directory, not the link that leads to it.
            if link.is_relative_to(root) and os.access(link.parent, os.W_OK):
                return f"Python runs through {link}, a link below the root that a command could replace"
    return None


def _interpreter() -> tuple[Path, ...]:
    installed = (sysconfig.get_path(name) for name in ("stdlib", "purelib"))
    return tuple(Path(place) for place in (sys.base_prefix, sys.prefix, *installed))


def _links_on(path: Path) -> Iterator[Path]:
    """Yield the links that a path leads through, each by the real path of its directory."""
    with suppress(PermissionError):  # only its owner can reach what we cannot even stat
        for step in (*reversed(path.parents), path):
            if step.is_symlink():
                yield step.parent.resolve() / step.name
                yield from _links_on(step.parent / step.readlink())
