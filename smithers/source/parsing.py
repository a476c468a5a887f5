"""Turn a file's bytes into Python source, and source into the imports that it names.

Nothing is executed here: the gateway calls this. Parsing takes time in proportion to the file (a
second or so for the largest one allowed) and belongs in a thread.
"""

import ast
import importlib.util
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import CodeType
from typing import Final

from smithers.source.errors import SourceBroken

TOO_DEEP: Final = "it is too deeply nested"

# What a submodule may be called; its file need not be named as an `import` statement can say it.
_MODULE_NAME: Final = re.compile(r"[\w-]+")

# warnings.catch_warnings swaps a list of the whole process: two threads in it at once would restore
# each other's. It guards no state of ours.
_WARNING_FILTERS: Final = threading.Lock()


@dataclass(frozen=True, slots=True)
class ImportStatement:
    """One `import` of a module; `level` counts the dots of a relative one."""

    level: int
    module: str
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ParsedSource:
    """What the closure needs to know of one module."""

    text: str
    size_bytes: int
    imports: tuple[ImportStatement, ...]
    # The names that `__all__` may hold: what `from package import *` may import.
    exported: tuple[str, ...]


def read_source(content: bytes, file: str) -> ParsedSource:
    """Decode and parse a module as Python would; raises SourceBroken."""
    text = decode(content, file)
    # Dicts as ordered sets: the order of the source, each once.
    imports: dict[ImportStatement, None] = {}
    exported: dict[str, None] = {}
    for node in ast.walk(_parse(text, file)):
        match node:
            case ast.Import(names=names):
                imports.update({ImportStatement(0, alias.name): None for alias in names})
            case ast.ImportFrom(module=module, names=names, level=level):
                named = tuple(alias.name for alias in names)
                imports[ImportStatement(level or 0, module or "", named)] = None
            # However the list comes about: it may be added up, or extended by a call.
            case ast.Assign() | ast.AugAssign() | ast.AnnAssign() | ast.Expr():
                exported.update(dict.fromkeys(_names_exported(node)))
            case _:
                pass
    return ParsedSource(text, len(text.encode()), tuple(imports), tuple(exported))


def decode(content: bytes, file: str) -> str:
    r"""Decode by byte order mark or encoding cookie, else UTF-8; line ends become `\n`."""
    try:
        text = importlib.util.decode_source(content)
        # Some codecs that a cookie may name make code points that no file and no database can hold.
        text.encode()
    except SyntaxError as error:
        raise SourceBroken(error.msg, file=file, line=1) from error
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise SourceBroken(
            f"it is not {error.encoding}: {error.reason}", file=file, line=line
        ) from error
    except (UnicodeError, LookupError) as error:
        raise SourceBroken("its encoding is not one of text", file=file, line=1) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise SourceBroken("it contains a NUL character", file=file, line=line)
    return text


def compile_source(text: str, filename: str) -> CodeType:
    """Compile a module under the name that its tracebacks show; raises SyntaxError.

    The author's SyntaxWarnings are shown, also where warnings are errors: a version that was
    accepted with them must load everywhere.
    """
    try:
        with _warnings("default"):
            return compile(text, filename, "exec", dont_inherit=True)
    except (RecursionError, MemoryError) as error:
        raise SyntaxError(TOO_DEEP, (filename, None, None, None)) from error


def _parse(text: str, file: str) -> ast.Module:
    try:
        with _warnings("ignore"):
            return ast.parse(text, file)
    except SyntaxError as error:
        raise SourceBroken(error.msg, file=file, line=error.lineno) from error
    except (RecursionError, MemoryError, ValueError) as error:
        # MemoryError is how the parser says that its own stack is exhausted.
        raise SourceBroken(TOO_DEEP, file=file, line=None) from error


def _names_exported(statement: ast.stmt) -> list[str]:
    """Return the words in a statement that touches `__all__`, where a module may be called so."""
    names: list[str] = []
    is_touched = False
    for node in ast.walk(statement):
        match node:
            case ast.Name(id="__all__"):
                is_touched = True
            case ast.Constant(value=str(text)):
                names += filter(_MODULE_NAME.fullmatch, text.split())
            case _:
                pass
    return names if is_touched else []


@contextmanager
def _warnings(action: "warnings._ActionKind") -> Iterator[None]:
    with _WARNING_FILTERS, warnings.catch_warnings():
        warnings.simplefilter(action)
        yield
