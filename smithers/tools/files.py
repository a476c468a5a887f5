"""Tools that read and change files below the root: `read`, `write` and `edit`.

An opened file is beneath the root at that moment, whatever links are swapped meanwhile (`smithers.source.beneath`), is a
regular file, and for reading has only one hard link. A write is atomic: a temporary file beside the target, then a
rename, which replaces a link instead of following it.
"""

import errno
import fcntl
import io
import os
import secrets
import stat
import time
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Annotated, Final

from pydantic import BaseModel, Field
from pydantic_core import to_json

from smithers.current import current_task
from smithers.source.beneath import RootDirectory, beneath
from smithers.source.errors import SourceError, SourceNotFound
from smithers.tools.errors import ToolRefused
from smithers.tools.tool import tool
from smithers.tools.toolbox import find_toolbox

MAX_FILE_BYTES: Final = 10 << 20
MAX_LINES: Final = 2_000
MAX_TEXT_CHARS: Final = 200_000
# Of a tool's result; the limit of outputs is a little higher.
MAX_JSON_BYTES: Final = 1_000_000
MAX_NAME_BYTES: Final = 255
LOCK_PATIENCE_S: Final = 10.0
LOCK_PAUSE_S: Final = 0.02
MODE: Final = 0o644

RelativePath = Annotated[str, Field(description="Relative to the root directory; no '..'.")]


class FileText(BaseModel):
    """Lines of a file."""

    path: str
    text: str
    start_line: int
    line_count: int  # of the whole file
    is_truncated: bool  # the file goes on after these lines


class Written(BaseModel):
    """The result of a write or an edit."""

    path: str
    bytes: int
    is_new: bool = False
    replacements: int = 0


@tool(side_effect=False)
def read(
    path: RelativePath,
    *,
    start_line: Annotated[int, Field(ge=1)] = 1,
    max_lines: Annotated[int, Field(ge=1)] = MAX_LINES,
) -> FileText:
    """Read a text file (UTF-8, 10 MiB at most), or some of its lines, numbered from 1."""
    text = _read_text(find_toolbox().root, path)
    lines = io.StringIO(text).readlines()  # as grep counts them: only a newline ends a line
    chosen = lines[start_line - 1 : start_line - 1 + max_lines]
    found = "".join(chosen)
    kept = cut_text(found[:MAX_TEXT_CHARS], MAX_JSON_BYTES)
    return FileText(
        path=path,
        text=kept,
        start_line=start_line,
        line_count=len(lines),
        is_truncated=len(kept) < len(found) or start_line - 1 + len(chosen) < len(lines),
    )


@tool(idempotent=True)
def write(path: RelativePath, text: str) -> Written:
    """Write a whole text file (1 MiB at most), atomically; missing parent directories are created."""
    content = text.encode()
    _check_size(len(content))
    root = find_toolbox().root
    with _place(root, path, makes_directories=True) as (directory, name):
        before = _status(directory, name, path)
        _replace(directory, name, content, before)
    return Written(path=path, bytes=len(content), is_new=before is None)


@tool
def edit(path: RelativePath, old: str, new: str, *, replace_all: bool = False) -> Written:
    """Replace a text in a file, atomically. `old` must occur exactly once, unless `replace_all` is set."""
    if not old:
        raise ToolRefused("what is to be replaced is empty; use write for a whole file")
    root = find_toolbox().root
    with _place(root, path, makes_directories=False) as (directory, name):
        text = _read_text(root, path)
        count = text.count(old)
        if count == 0:
            raise ToolRefused(f"{path} does not contain that text: read it again")
        if count > 1 and not replace_all:
            raise ToolRefused(
                f"{path} contains that text {count} times: give more of it, or replace all"
            )
        # Before replacing: a few bytes for each occurrence of a letter can add up to gigabytes.
        growth = len(new.encode()) - len(old.encode())
        _check_size(len(text.encode()) + count * growth)
        content = text.replace(old, new).encode()
        before = _status(directory, name, path)
        _replace(directory, name, content, before)
    return Written(path=path, bytes=len(content), replacements=count)


def cut_text(text: str, max_json_bytes: int) -> str:
    """Return the beginning of a text, no longer than this as JSON, where a control character takes six bytes."""
    if len(to_json(text)) <= max_json_bytes:
        return text
    lengths = range(len(text) + 1)
    fitting = bisect_right(lengths, max_json_bytes, key=lambda length: len(to_json(text[:length])))
    return text[: fitting - 1]


def _read_text(root: RootDirectory, path: str) -> str:
    try:
        content = root.read(path, max_bytes=MAX_FILE_BYTES).content
    except SourceError as error:
        raise ToolRefused(error.reason) from error
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise ToolRefused(f"{path} is not UTF-8 text") from None


def _check_size(size_bytes: int) -> None:
    if size_bytes > MAX_FILE_BYTES:
        raise ToolRefused(f"a file may have {MAX_FILE_BYTES} bytes; this would have {size_bytes}")


@contextmanager
def _place(root: RootDirectory, path: str, *, makes_directories: bool) -> Iterator[tuple[int, str]]:
    """Open the directory of a file, locked against our other writers; yield it and the file's name."""
    try:
        parent, _, name = beneath(path).rpartition("/")
        if len(name.encode()) > MAX_NAME_BYTES:
            raise ToolRefused(f"a file's name has at most {MAX_NAME_BYTES} bytes")
        directory = _open_directory(root, parent, makes_directories=makes_directories)
    except SourceError as error:
        raise ToolRefused(error.reason) from error
    try:
        _lock(directory, path)
        yield directory, name
    except OSError as error:
        raise ToolRefused(f"{path} cannot be written: {os.strerror(error.errno or 0)}") from error
    finally:
        os.close(directory)


def _open_directory(root: RootDirectory, path: str, *, makes_directories: bool) -> int:
    try:
        return root.open_to_change(path)
    except SourceNotFound:
        if path and root.is_file(path):
            raise ToolRefused(f"{path} is a file, not a directory: nothing is below it") from None
        if not (makes_directories and path):
            raise
    parent, _, name = path.rpartition("/")
    above = _open_directory(root, parent, makes_directories=True)
    try:
        with suppress(FileExistsError):  # another was faster, or no directory: see below
            os.mkdir(name, 0o755, dir_fd=above)
    except OSError as error:
        raise ToolRefused(f"{path} cannot be made: {os.strerror(error.errno or 0)}") from error
    finally:
        os.close(above)
    return root.open_to_change(path)


def _lock(directory: int, path: str) -> None:
    """Exclude other writers to this directory, so that no concurrent edit is lost."""
    # The writers are several processes, perhaps in several containers, and have nothing but the directory in common. A
    # jailed command can lock it too. That does no more harm than its removing the directory, as long as who waits gives up.
    give_up_at = time.monotonic() + LOCK_PATIENCE_S
    while True:
        try:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if current_task().cancelled.wait(LOCK_PAUSE_S) or time.monotonic() > give_up_at:
                raise ToolRefused(f"the directory of {path} is kept locked by others") from None
        else:
            return


def _status(directory: int, name: str, path: str) -> os.stat_result | None:
    """Stat the file that a write would replace; raise ToolRefused if it is not a regular file."""
    try:
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode):
        raise ToolRefused(f"{path} is not a regular file")
    return status


def _replace(directory: int, name: str, content: bytes, before: os.stat_result | None) -> None:
    temporary = f".{secrets.token_hex(8)}.part"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    number = os.open(temporary, flags, MODE, dir_fd=directory)
    try:
        with os.fdopen(number, "wb") as file:
            if before is not None:
                _keep_rights(number, before)
            file.write(content)
            file.flush()
            os.fsync(number)
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except OSError as error:
        with suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=directory)
        if error.errno == errno.EISDIR:
            raise ToolRefused(f"{name} is a directory") from error
        raise


def _keep_rights(number: int, before: os.stat_result) -> None:
    """Copy the previous file's mode, without setuid and the like, and as root its owner."""
    if os.geteuid() == 0:
        with suppress(OSError):  # in a container root may not be allowed to change owners
            os.fchown(number, before.st_uid, before.st_gid)
    os.fchmod(number, before.st_mode & 0o777)
