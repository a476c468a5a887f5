"""One version of a workflow's source in this process: its modules, and the imports between them.

The modules of a version live in `sys.modules` under a package of the version's own,
`smithers_source_<hash>`, so that two versions stand side by side. Every module has its own
`__builtins__` with its own `__import__`, which finds the version's modules by the rules of
smithers.source.resolution, also long after the module was loaded, and passes everything else to the
real one. `importlib.import_module("helpers")` does not go that way: it finds installed modules
only, and its error names the one that is missing.
"""

import builtins
import contextlib
import io
import linecache
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Final

from smithers.source.closure import SourceBundle
from smithers.source.parsing import ImportStatement, compile_source
from smithers.source.resolution import (
    ancestors,
    below,
    directory_of,
    find_file,
    find_start,
    is_package,
    search_places,
)

PACKAGE_PREFIX: Final = "smithers_source_"
# Where the package of a version keeps the version: sys.modules is the only list of what is loaded.
VERSION_ATTRIBUTE: Final = "__smithers_version__"


def package_name(source_hash: str) -> str:
    """Name the package that holds a version's modules."""
    return PACKAGE_PREFIX + source_hash[:16]


class LoadedVersion:
    """The modules of one bundle; each is executed once, when it is first imported.

    `lock` is held while modules are executed, and may be taken again by the same thread. So a
    module that starts a thread while it is imported, and waits for it, must not import one of its
    version's modules for the first time in there: the two would wait for each other.
    """

    def __init__(self, bundle: SourceBundle) -> None:
        self.bundle = bundle
        self.lock = threading.RLock()
        self.package = ModuleType(package_name(bundle.source_hash))
        self.package.__path__ = []
        vars(self.package)[VERSION_ATTRIBUTE] = self
        self.file_suffix = f"@{bundle.source_hash[:8]}"
        self._search = search_places(bundle.entry)
        self._directories = frozenset(
            directory for file in bundle.modules for directory in ancestors(file)
        )
        # By file, or by directory with a slash at its end where it has no __init__.py. What is only
        # started is for circular imports to see, in the thread that holds the lock.
        self._started: dict[str, ModuleType] = {}
        self._ready: dict[str, ModuleType] = {}

    def load(self, file: str) -> ModuleType:
        """Execute a module and the packages above it, unless they were executed already."""
        if (ready := self._ready.get(file)) is not None:
            return ready
        with self.lock:
            place = directory_of(file) if is_package(file) else file.removesuffix(".py")
            for directory in ancestors(place):
                self._load_directory(directory)
            if (started := self._started.get(file)) is not None:
                return started
            module = self._execute(file)
            # A package may have replaced itself by an object that takes no attributes.
            with contextlib.suppress(AttributeError):
                above = self._load_directory(directory_of(place))
                setattr(above, place.rpartition("/")[2], module)
            # Last: from here on others see it, without the lock.
            self._ready[file] = module
            return module

    def list_ready(self) -> list[tuple[str, ModuleType]]:
        """List the modules that have been executed, by their files; the entry's first."""
        return sorted(self._ready.items(), key=lambda ready: ready[0] != self.bundle.entry)

    def unload(self) -> None:
        """Remove the version's modules, unless one is being executed; running code keeps its own and may import more."""
        if not self.lock.acquire(blocking=False):
            return
        try:
            self._remove()
        finally:
            self.lock.release()

    def _remove(self) -> None:
        inside = self.package.__name__ + "."
        for name in [name for name in list(sys.modules) if name.startswith(inside)]:
            sys.modules.pop(name, None)
        for file in self.bundle.modules:
            linecache.cache.pop(file + self.file_suffix, None)
        if sys.modules.get(self.package.__name__) is self.package:
            del sys.modules[self.package.__name__]

    def find_import(
        self, importer: str, name: str, names: Sequence[str], level: int
    ) -> ModuleType | None:
        """Implement `__import__` for the version's modules; None: it is not one of them."""
        start = find_start(
            ImportStatement(level, name, tuple(names)),
            importer=importer,
            search=self._search,
            has_file=self._has_file,
        )
        if start is None:
            return None
        place, first = start, None
        last = self._load_directory(start) if level else None
        for part in name.split(".") if name else ():
            place = below(place, part)
            found = None if last and not hasattr(last, "__path__") else self._load_place(place)
            if found is None:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            first, last = first or found, found
        if last is None or not names:
            return first
        self._load_names(last, place, names)
        return last

    def _load_names(self, package: ModuleType, place: str, names: Sequence[str]) -> None:
        if not hasattr(package, "__path__"):
            return
        wanted = [name for name in names if name != "*"]
        if "*" in names:
            wanted += getattr(package, "__all__", ())
        for name in wanted:
            if not hasattr(package, name):
                self._load_place(below(place, name))

    def _load_place(self, place: str) -> ModuleType | None:
        if file := find_file(place, self._has_file):
            return self.load(file)
        return self._load_directory(place) if place in self._directories else None

    def _load_directory(self, directory: str) -> ModuleType:
        if not directory:
            return self.package
        if self._has_file(package := f"{directory}/__init__.py"):
            return self.load(package)
        with self.lock:
            key = f"{directory}/"
            if (known := self._started.get(key)) is not None:
                return known
            above = self._load_directory(directory_of(directory))
            module = self._started[key] = self._create(self._name(key), file=None)
            sys.modules[module.__name__] = module
            # A module beside the directory may have the name already, and was imported on purpose.
            vars(above).setdefault(directory.rpartition("/")[2], module)
            return module

    def _execute(self, file: str) -> ModuleType:
        text = self.bundle.modules[file]
        filename = file + self.file_suffix
        # No mtime: linecache then never reads the disk, which may have another version.
        lines = list(io.StringIO(text))
        linecache.cache[filename] = (len(text), None, lines, filename)
        code = compile_source(text, filename)
        name = self._name(file)
        module = self._started[file] = sys.modules[name] = self._create(name, file=file)
        try:
            exec(code, vars(module))  # noqa: S102 - executing the author's module is what this is for
        except BaseException:
            # Like the import statement: a module that raised was never imported.
            del self._started[file]
            sys.modules.pop(name, None)
            raise
        # A module may replace itself.
        return sys.modules.get(name, module)

    def _create(self, name: str, *, file: str | None) -> ModuleType:
        module = ModuleType(name)
        holds_modules = file is None or is_package(file)
        spec = ModuleSpec(name, None, origin=file, is_package=holds_modules)
        module.__spec__ = spec
        module.__package__ = spec.parent
        if holds_modules:
            module.__path__ = []
        if file is not None:
            module.__file__ = file
            own = {**vars(builtins), "__import__": self._import_of(file)}
            vars(module)["__builtins__"] = own
        return module

    def _import_of(self, importer: str) -> Callable[..., ModuleType]:
        def import_name(
            name: str,
            globals: Mapping[str, object] | None = None,  # noqa: A002 - the protocol's name
            locals: Mapping[str, object] | None = None,  # noqa: A002 - the protocol's name
            fromlist: Sequence[str] | None = (),
            level: int = 0,
        ) -> ModuleType:
            found = self.find_import(importer, name, fromlist or (), level)
            if found is not None:
                return found
            return builtins.__import__(name, globals, locals, fromlist or (), level)

        return import_name

    def _has_file(self, file: str) -> bool:
        return file in self.bundle.modules

    def _name(self, key: str) -> str:
        """Name a module by its path, such that no two of a version have the same name."""
        place = key.removesuffix("/").removesuffix(".py")
        if is_package(key) and "/" in key:
            place = directory_of(key)
        elif key.endswith(".py") and place in self._directories:
            place = key
        parts = (part.replace(".", "%2e") for part in place.split("/"))
        return ".".join((self.package.__name__, *parts))
