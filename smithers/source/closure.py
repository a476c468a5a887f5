"""Read a workflow's file and the modules below the root that it imports, and name them by hash.

The gateway calls this; nothing of what is read is ever executed here. A bundle holds what was read:
the bytes that were hashed are the bytes that are stored. The files are read one after another, so a
bundle may mix two states of a deploy in progress, but never half a file that does not parse.
Imports are found everywhere, in functions, in `try` and under `TYPE_CHECKING` too.
Files that no import statement names (`importlib.import_module`, data files) are not part of a bundle.
"""

import hashlib
import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Final, Self
from weakref import WeakValueDictionary

from smithers.ids import MAX_WORKFLOW_NAME_CHARS, SourceHash
from smithers.source.beneath import FileIdentity, RootDirectory, beneath
from smithers.source.errors import OutsideRoot, SourceUnreadable
from smithers.source.parsing import ImportStatement, ParsedSource, read_source
from smithers.source.resolution import (
    ancestors,
    below,
    directory_of,
    files_of,
    find_file,
    is_package,
    search_places,
)

# Python parses a file in one piece, and no other thread of the process runs meanwhile.
MAX_FILE_BYTES: Final = 512 * 1024
MAX_MODULES: Final = 500
MAX_BUNDLE_BYTES: Final = 16 * 1024 * 1024

MAX_CACHED_FILES: Final = 4 * MAX_MODULES
MAX_CACHED_BYTES: Final = 4 * MAX_BUNDLE_BYTES

# A file changed twice within one tick of its file system's clock looks unchanged the second time
# (the index of git has the same problem). The coarsest clock in use, FAT's, ticks every 2 s.
SETTLED_NS: Final = 2_500_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceBundle:
    """One version of a workflow's source."""

    entry: str  # the entry file's path below the root, with `/`
    workflow_name: str | None  # the requested workflow of the file; not part of the version
    modules: Mapping[str, str]  # path below the root -> text; the entry and the packages above too
    source_hash: SourceHash  # the sha-256, in hex, of entry and modules; see hash_source

    def to_json(self) -> str:
        """Encode what the hash covers: equal hashes, equal text, whichever name was requested."""
        modules = dict(sorted(self.modules.items()))
        return json.dumps({"entry": self.entry, "modules": modules}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str, *, workflow_name: str | None = None) -> Self:
        """Read a stored bundle; its hash is computed again, to be compared with the row's key."""
        stored = json.loads(text)
        entry, modules = stored["entry"], stored["modules"]
        return cls(
            entry=entry,
            workflow_name=workflow_name,
            modules=modules,
            source_hash=hash_source(entry, modules),
        )


def hash_source(entry: str, modules: Mapping[str, str]) -> SourceHash:
    """Hash a version: every part is preceded by its length, the modules are sorted by path."""
    digest = hashlib.sha256(b"smithers source 1\n")
    for part in (entry, *chain.from_iterable(sorted(modules.items()))):
        content = part.encode()
        digest.update(len(content).to_bytes(8, "big"))
        digest.update(content)
    return SourceHash(digest.hexdigest())


def read_bundle(root: RootDirectory, workflow_path: str) -> SourceBundle:
    """Read `path.py` or `path.py:name` and its import closure, once and without a cache.

    Raises OutsideRoot, SourceNotFound, SourceUnreadable, SourceBroken.
    """
    return SourceReader(root).read(workflow_path)


class SourceReader:
    """A reader of many bundles, which parses only what has changed since the last.

    Every read resolves every import anew, so a file that appears and shadows another is seen at the
    next read; only the contents of files are remembered. Threads may share it.
    """

    def __init__(self, root: RootDirectory) -> None:
        self._root = root
        self._files = _FileCache(root)
        # Concurrent reads of one version are serialized: the second finds what the first has parsed.
        self._turns: WeakValueDictionary[str, threading.Lock] = WeakValueDictionary()
        self._turns_lock = threading.Lock()

    def read(self, workflow_path: str) -> SourceBundle:
        """Read a bundle; blocks on the disk and on other readers of it, and raises like read_bundle."""
        known = self.find(workflow_path)
        if known is not None:
            return known
        with self._turns_lock:
            turn = self._turns.setdefault(workflow_path, threading.Lock())
        with turn:
            return self._walk(workflow_path, self._files.read)

    def find(self, workflow_path: str) -> SourceBundle | None:
        """Return the bundle that `read` would, if all of its files are cached and unchanged; else None.

        It checks each file's timestamps but no contents, and waits for no thread. Raises like read_bundle.
        """
        try:
            return self._walk(workflow_path, self._files.recall)
        except _NotKnown:
            return None

    def _walk(self, workflow_path: str, read: Callable[[str], ParsedSource]) -> SourceBundle:
        path, name = split_reference(workflow_path)
        entry = beneath(path)
        modules = _Closure(self._root, read, entry).collect()
        return SourceBundle(
            entry=entry,
            workflow_name=name,
            modules=modules,
            source_hash=hash_source(entry, modules),
        )


def split_reference(workflow_path: str) -> tuple[str, str | None]:
    """Split `path.py:name`; raises SourceUnreadable for anything but a Python file and a workflow's name."""
    if workflow_path.endswith(".py"):
        return workflow_path, None
    path, _, name = workflow_path.rpartition(":")
    if path.endswith(".py") and len(name) > MAX_WORKFLOW_NAME_CHARS:
        longest = f"{MAX_WORKFLOW_NAME_CHARS} characters"
        raise SourceUnreadable(f"a workflow's name in {path} has at most {longest}")
    if path.endswith(".py") and name:
        return path, name
    beneath(workflow_path)  # OutsideRoot takes precedence over other errors
    raise SourceUnreadable(f"{workflow_path!r} names no .py file (path.py or path.py:name)")


@dataclass(frozen=True, slots=True)
class _CachedFile:
    identity: FileIdentity
    is_settled: bool
    content: bytes
    source: ParsedSource


class _NotKnown(Exception):
    """A file is not cached, or has changed since."""


class _FileCache:
    """Parsed files by path, the least recently used dropped first. The lock is never held while a file is read."""

    def __init__(self, root: RootDirectory) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._files: OrderedDict[str, _CachedFile] = OrderedDict()
        self._size_bytes = 0

    def read(self, path: str) -> ParsedSource:
        """Parse a file, or return it from the cache; raises what opening and parsing raise."""
        with self._lock:
            known = self._look_up(path)
        if known is not None and self._is_unchanged(path, known):
            return known.source
        # Taken before the read: what is changed after it must not pass for settled.
        now_ns = time.time_ns()
        found = self._root.read(path, max_bytes=MAX_FILE_BYTES)
        is_same = known is not None and known.content == found.content
        source = known.source if known and is_same else read_source(found.content, path)
        changed_ns = max(found.identity.changed_ns, found.identity.modified_ns)
        is_settled = changed_ns < now_ns - SETTLED_NS
        with self._lock:
            self._keep(path, _CachedFile(found.identity, is_settled, found.content, source))
        return source

    def recall(self, path: str) -> ParsedSource:
        """Return a cached, unchanged file; raises _NotKnown for any other, and if the lock is held."""
        if not self._lock.acquire(blocking=False):
            raise _NotKnown
        try:
            known = self._look_up(path)
        finally:
            self._lock.release()
        if known is None or not self._is_unchanged(path, known):
            raise _NotKnown
        return known.source

    def _look_up(self, path: str) -> _CachedFile | None:
        known = self._files.get(path)
        if known is not None:
            self._files.move_to_end(path)
        return known

    def _is_unchanged(self, path: str, known: _CachedFile) -> bool:
        return known.is_settled and self._root.find_identity(path) == known.identity

    def _keep(self, path: str, file: _CachedFile) -> None:
        self._drop(path)
        self._files[path] = file
        self._size_bytes += len(file.content)
        while len(self._files) > MAX_CACHED_FILES or self._size_bytes > MAX_CACHED_BYTES:
            self._drop(next(iter(self._files)))

    def _drop(self, path: str) -> None:
        if file := self._files.pop(path, None):
            self._size_bytes -= len(file.content)


class _Closure:
    """One walk from an entry file over everything below the root that it imports."""

    def __init__(
        self, root: RootDirectory, read: Callable[[str], ParsedSource], entry: str
    ) -> None:
        self._root = root
        self._read = read
        self._entry = entry
        self._search = search_places(entry)
        self._sources: dict[str, ParsedSource] = {}
        self._answers: dict[str, bool] = {}
        self._directories: dict[str, bool] = {"": True}
        self._to_walk: list[str] = []
        self._size_bytes = 0

    def collect(self) -> dict[str, str]:
        """Walk, and return the text of every module by its path."""
        self._add(self._entry)
        while self._to_walk:
            importer = self._to_walk.pop()
            for statement in self._sources[importer].imports:
                self._follow(statement, importer)
        return {path: source.text for path, source in sorted(self._sources.items())}

    def _follow(self, statement: ImportStatement, importer: str) -> None:
        # files_of stops at the last file of the chain: for a star, that is whose `__all__` counts.
        file = None
        for file in files_of(
            statement, importer=importer, search=self._search, has_file=self._has_file
        ):
            self._add(file)
        if "*" in statement.names and file is not None and is_package(file):
            place = directory_of(file)
            for name in self._sources[file].exported:
                if submodule := find_file(below(place, name), self._has_file):
                    self._add(submodule)

    def _add(self, path: str) -> None:
        if path in self._sources:
            return
        if len(self._sources) == MAX_MODULES:
            raise SourceUnreadable(
                f"{self._entry} imports more than {MAX_MODULES} modules below the root"
            )
        source = self._read(path)
        self._size_bytes += source.size_bytes
        if self._size_bytes > MAX_BUNDLE_BYTES:
            raise SourceUnreadable(
                f"{self._entry} and what it imports are larger than {MAX_BUNDLE_BYTES} bytes"
            )
        self._sources[path] = source
        self._to_walk.append(path)
        for directory in ancestors(path):
            if self._has_file(package := f"{directory}/__init__.py"):
                self._add(package)

    def _has_file(self, path: str) -> bool:
        """Answer once per walk, so that one import cannot mean two files in one bundle."""
        answer = self._answers.get(path)
        if answer is None:
            answer = self._answers[path] = self._looks_like_module(path)
        return answer

    def _looks_like_module(self, path: str) -> bool:
        # Most names are installed libraries: they cost one look at the directory, not one per name.
        directory = directory_of(path)
        if not (self._has_directory(directory) and self._root.holds(path)):
            return False
        try:
            return self._root.is_file(path)
        except OutsideRoot:
            # A link in place of the module itself is the author's import, and refused. A directory
            # that leads out may be anybody's data; nothing in it is looked at, so nothing is there.
            if self._is_beneath(directory):
                raise
            return False

    def _has_directory(self, path: str) -> bool:
        answer = self._directories.get(path)
        if answer is None:
            above = directory_of(path)
            answer = self._has_directory(above) and self._root.holds(path)
            self._directories[path] = answer
        return answer

    def _is_beneath(self, directory: str) -> bool:
        try:
            return self._root.is_dir(directory)
        except OutsideRoot:
            return False
