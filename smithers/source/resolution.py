"""Resolve an import to a file below the root, in the same way for the closure and for the loader.

Both ask the same functions, the closure about the disk, the loader about the stored modules, so
that what was found is what is loaded. The rules are Python's for a script: beside the entry file
first (`sys.path[0]`), then the root, then whatever is installed; in one directory a package
before a module. They differ in three points, because the files alone must decide:

- `smithers` and the modules built into the interpreter are never local;
- a directory without `__init__.py` counts only for an import that names a file below it, and
  never under the name of a module of the standard library: a data directory shadows nothing;
- every package above a module is imported before it, the entry's own included, and a relative
  import works in any directory below the root.

A *place* is a module's path without its suffix (`flows/tools`); the root itself is `""`.
"""

import sys
from collections.abc import Callable, Iterator
from typing import Final

from smithers.source.parsing import ImportStatement

HasFile = Callable[[str], bool]

# A root that is this project's own checkout must not load a second copy of it.
NEVER_LOCAL: Final = frozenset(sys.builtin_module_names) | {"smithers"}


def below(directory: str, name: str) -> str:
    """Join two parts of a path; the first may be the root."""
    return f"{directory}/{name}" if directory else name


def directory_of(path: str) -> str:
    """Return the directory of a path."""
    return path.rpartition("/")[0]


def search_places(entry: str) -> tuple[str, ...]:
    """List the directories in which absolute imports are looked up, in order."""
    beside = directory_of(entry)
    return (beside, "") if beside else ("",)


def ancestors(path: str) -> Iterator[str]:
    """List the directories above a path, outermost first, without the root."""
    parts = path.split("/")[:-1]
    return ("/".join(parts[: depth + 1]) for depth in range(len(parts)))


def find_file(place: str, has_file: HasFile) -> str | None:
    """Find the package or module at a place; None for a directory without `__init__.py`."""
    for file in (f"{place}/__init__.py", f"{place}.py"):
        if place and has_file(file):
            return file
    return None


def is_package(file: str) -> bool:
    """Say whether a module's file is a package's."""
    return file.rpartition("/")[2] == "__init__.py"


def find_start(
    statement: ImportStatement,
    *,
    importer: str,
    search: tuple[str, ...],
    has_file: HasFile,
) -> str | None:
    """Find the directory in which to look up an import's first name; None: not local.

    Raises ImportError for a relative import that climbs above the root.
    """
    if statement.level == 0:
        return _find_absolute_start(statement, search, has_file)
    directories = ["", *ancestors(importer)]
    if statement.level > len(directories):
        raise ImportError("attempted relative import beyond top-level package")
    return directories[-statement.level]


def files_of(
    statement: ImportStatement,
    *,
    importer: str,
    search: tuple[str, ...],
    has_file: HasFile,
) -> Iterator[str]:
    """List the files that an import may load, including the packages on the way.

    The names of a star import are the package's own business: see the closure.
    """
    try:
        start = find_start(statement, importer=importer, search=search, has_file=has_file)
    except ImportError:
        return
    if start is None:
        return
    place = start
    if statement.level and start and has_file(package := f"{start}/__init__.py"):
        yield package
    for part in statement.module.split(".") if statement.module else ():
        place = below(place, part)
        file = find_file(place, has_file)
        if file is not None:
            yield file
            if not is_package(file):
                return
    for name in statement.names:
        if name != "*" and (submodule := find_file(below(place, name), has_file)):
            yield submodule


def _find_absolute_start(
    statement: ImportStatement, search: tuple[str, ...], has_file: HasFile
) -> str | None:
    top, *submodules = statement.module.split(".")
    if top in NEVER_LOCAL:
        return None
    for directory in search:
        if find_file(below(directory, top), has_file):
            return directory
    if top in sys.stdlib_module_names:
        return None
    for directory in search:
        place = below(directory, top)
        for part in submodules:
            place = below(place, part)
            if find_file(place, has_file):
                return directory
        for name in statement.names:
            if find_file(below(place, name), has_file):
                return directory
    return None
