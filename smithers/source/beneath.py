"""Open files beneath a root directory, whatever is swapped concurrently.

Guarantees: a file that is read is beneath the root at the moment it is opened, is a regular file with
one name, is no larger than asked, and did not change while it was read. One descriptor of the root
is held, so a root that is renamed or replaced later stays the same directory here.

With openat2(2) (Linux 5.6) links that stay beneath the root are followed; links that lead out, and
all links with an absolute target, are refused by the kernel. Where openat2 is missing or forbidden
(an old kernel, a strict seccomp filter) every component is opened by itself without following
links, so that any link at all is refused.
"""

import ctypes
import errno
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from smithers.source.errors import OutsideRoot, SourceError, SourceNotFound, SourceUnreadable

# The number is the same on every architecture that CPython supports on Linux.
OPENAT2: Final = 437
RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_BENEATH: Final = 0x08

# EAGAIN: something was renamed while the kernel resolved `..` in a link; it asks for another call.
RESOLVE_ATTEMPTS: Final = 64
READ_ATTEMPTS: Final = 4

# The errors for a component that is not a directory, and for an impossible name.
ABSENT: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG})
REFUSED: Final = frozenset({errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP})


class OpenHow(ctypes.Structure):
    """`struct open_how` of openat2(2)."""

    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


def _beneath(flags: int) -> OpenHow:
    return OpenHow(flags | os.O_CLOEXEC, 0, RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS)


# A FIFO must not block, a terminal must not become ours; both are refused after opening.
TO_READ: Final = _beneath(os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
TO_LOOK: Final = _beneath(os.O_PATH)


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """Equal identities: the same file, unchanged, within the resolution of its timestamps."""

    device: int
    inode: int
    size_bytes: int
    modified_ns: int
    changed_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Self:
        """Return the identity from a result of fstat."""
        return cls(
            status.st_dev,
            status.st_ino,
            status.st_size,
            status.st_mtime_ns,
            status.st_ctime_ns,
        )


@dataclass(frozen=True, slots=True)
class FileContent:
    """A whole file, and its identity."""

    content: bytes
    identity: FileIdentity


def beneath(relative: str) -> str:
    """Return a path's canonical spelling, or raise OutsideRoot.

    `..` is refused even where it would stay inside: after a link it means something else than it
    says. A path that no file can have raises SourceNotFound.
    """
    if "\0" in relative:
        raise OutsideRoot("the path contains a NUL byte")
    if relative.startswith("/"):
        raise OutsideRoot("the path is absolute; it must be relative to the root")
    parts = [part for part in relative.split("/") if part not in {"", "."}]
    if ".." in parts:
        raise OutsideRoot(f"the path {relative!r} contains '..'")
    if not parts or not _is_utf8(relative):
        raise SourceNotFound(f"there is no file {relative!r}")
    return "/".join(parts)


class RootDirectory:
    """A directory below which files are read; holds one descriptor until it is closed.

    Safe to use from several threads, as long as none of them closes it.
    """

    def __init__(
        self, path: Path, *, hidden: str | None = None, closed: Iterable[Path] = ()
    ) -> None:
        """Open the directory; raises OSError if there is none.

        The directory `hidden` and files below it are not found, not even through a link. Below `closed`, real paths
        below this one, nothing is changed.
        """
        self.path = path.resolve(strict=True)
        self._hidden = hidden
        self._closed = tuple(place.relative_to(self.path) for place in closed)
        self._fd = os.open(self.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._openat2 = ctypes.CDLL(None, use_errno=True).syscall
        self._openat2.restype = ctypes.c_long
        self._openat2.argtypes = (
            ctypes.c_long,
            ctypes.c_long,
            ctypes.c_char_p,
            ctypes.POINTER(OpenHow),
            ctypes.c_size_t,
        )
        self.follows_links = self._kernel_resolves()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the descriptor; a second call does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def read(self, relative: str, *, max_bytes: int) -> FileContent:
        """Read a regular file and its identity; raises OutsideRoot, SourceNotFound, SourceUnreadable.

        A file that changes while it is read is read again a few times, then refused.
        """
        path = beneath(relative)
        for _ in range(READ_ATTEMPTS):
            fd = self._open(path, TO_READ)
            try:
                found = _read_unchanged(fd, path, max_bytes=max_bytes)
            finally:
                os.close(fd)
            if found is not None:
                return found
        raise SourceUnreadable(f"{path} is being written to; try again when that is done")

    def open(self, relative: str, flags: int) -> int:
        """Open what a path leads to (`""`: the root); the caller closes it. Raises as read does.

        It creates nothing: with O_CREAT a dangling link could lead outside the root.
        """
        assert not flags & os.O_CREAT
        return self._open(beneath(relative) if relative else ".", _beneath(flags))

    def open_to_change(self, relative: str) -> int:
        """Open a directory (`""`: the root) to change something in it; raises like open."""
        fd = self.open(relative, os.O_RDONLY | os.O_DIRECTORY)
        if any(self._is_in(fd, place) for place in self._closed):
            os.close(fd)
            raise SourceUnreadable(
                f"{relative or 'the root'} holds code that the server runs: nothing is written there"
            )
        return fd

    def find_identity(self, relative: str) -> FileIdentity | None:
        """Return the identity of the regular file that a path leads to, without reading it; None if there is none.

        Raises OutsideRoot, SourceUnreadable.
        """
        status = self._status(beneath(relative))
        if status is None or not stat.S_ISREG(status.st_mode):
            return None
        return FileIdentity.of(status)

    def is_file(self, relative: str) -> bool:
        """Say whether a regular file is there; raises OutsideRoot, SourceUnreadable."""
        return self.find_identity(relative) is not None

    def is_dir(self, relative: str) -> bool:
        """Say whether a directory is there (`""`: the root); raises as is_file."""
        if not relative:
            return True
        status = self._status(beneath(relative))
        return status is not None and stat.S_ISDIR(status.st_mode)

    def holds(self, path: str) -> bool:
        """Say whether a path's last component has a name there, whatever it is or leads to.

        One cheap system call, for the many names that are not there. It proves nothing about where
        the path leads: what is found has still to be opened.
        """
        return os.access(path, os.F_OK, dir_fd=self._fd, follow_symlinks=False)

    def _status(self, path: str) -> os.stat_result | None:
        try:
            fd = self._open(path, TO_LOOK)
        except SourceNotFound:
            return None
        try:
            return os.fstat(fd)
        finally:
            os.close(fd)

    def _open(self, path: str, how: OpenHow) -> int:
        try:
            fd = self._open_any(path, how)
        except OSError as error:
            raise _ours(error, path) from error
        if self._hidden is not None and self._is_in(fd, self._hidden):
            os.close(fd)
            raise SourceNotFound(f"there is no file {path}")
        return fd

    def _open_any(self, path: str, how: OpenHow) -> int:
        if self.follows_links:
            return self._open_resolved(path.encode(), how)
        return self._open_stepwise(path, how.flags)

    def _is_in(self, fd: int, place: str | Path) -> bool:
        """Say whether the kernel finds an open file at a place below the root, by whichever links it was reached."""
        whole = Path(f"/proc/self/fd/{self._fd}").readlink() / place
        return Path(f"/proc/self/fd/{fd}").readlink().is_relative_to(whole)

    def _kernel_resolves(self) -> bool:
        try:
            os.close(self._open_resolved(b".", TO_LOOK))
        except OSError as error:
            if error.errno in REFUSED:  # EPERM: how old seccomp filters refuse unknown calls
                return False
            os.close(self._fd)
            raise
        return True

    def _open_resolved(self, path: bytes, how: OpenHow) -> int:
        for _ in range(RESOLVE_ATTEMPTS):
            fd: int = self._openat2(OPENAT2, self._fd, path, how, ctypes.sizeof(how))
            if fd >= 0:
                return fd
            code = ctypes.get_errno()
            if code not in {errno.EAGAIN, errno.EINTR}:
                break
        raise OSError(code, os.strerror(code))

    def _open_stepwise(self, path: str, flags: int) -> int:
        *parents, name = path.encode().split(b"/")
        at = os.dup(self._fd)
        try:
            for parent in parents:
                below = _step(parent, TO_LOOK.flags | os.O_DIRECTORY, at)
                os.close(at)
                at = below
            return _step(name, flags, at)
        finally:
            os.close(at)


def _step(name: bytes, flags: int, at: int) -> int:
    """Open one component; a link raises ELOOP, whichever way the flags made the kernel put it."""
    try:
        fd = os.open(name, flags | os.O_NOFOLLOW, dir_fd=at)
    except NotADirectoryError:
        if stat.S_ISLNK(os.stat(name, dir_fd=at, follow_symlinks=False).st_mode):
            raise OSError(errno.EXDEV, "a link") from None
        raise
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.EXDEV, "a link") from error
        raise
    # O_PATH with O_NOFOLLOW opens the link itself instead of failing.
    if stat.S_ISLNK(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EXDEV, "a link")
    return fd


def _read_unchanged(fd: int, path: str, *, max_bytes: int) -> FileContent | None:
    """Read all of an open file; None if it changed under the reader."""
    before = os.fstat(fd)
    if not stat.S_ISREG(before.st_mode):
        raise SourceUnreadable(f"{path} is not a regular file")
    # A second name may lie outside the root, and the file be somebody else's. None at all: it was
    # replaced a moment ago, and this is the whole old one.
    if before.st_nlink > 1:
        raise SourceUnreadable(f"{path} has more than one name (hard links); copy it instead")
    if before.st_size > max_bytes:
        raise SourceUnreadable(f"{path} is larger than {max_bytes} bytes")
    try:
        content = _read_at_most(fd, before.st_size + 1)
    except OSError as error:
        raise _ours(error, path) from error
    identity = FileIdentity.of(before)
    if len(content) != before.st_size or FileIdentity.of(os.fstat(fd)) != identity:
        return None
    return FileContent(content, identity)


def _read_at_most(fd: int, size_bytes: int) -> bytes:
    chunks: list[bytes] = []
    while size_bytes > 0 and (chunk := os.read(fd, size_bytes)):
        chunks.append(chunk)
        size_bytes -= len(chunk)
    return b"".join(chunks)


def _ours(error: OSError, path: str) -> SourceError:
    code = error.errno or 0
    if code in ABSENT:
        return SourceNotFound(f"there is no file {path}")
    if code == errno.EXDEV:
        return OutsideRoot(f"{path} leads out of the root through a link (or an absolute one)")
    if code == errno.ELOOP:
        return SourceUnreadable(f"{path} leads through too many links")
    return SourceUnreadable(f"{path} cannot be opened: {os.strerror(code)}")


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
