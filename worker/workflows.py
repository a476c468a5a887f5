"""The workflows that a child has loaded, by the hash of their source, so that versions coexist.

Versions that no run uses are unloaded, the least recently used first, when there are too many: generated workflows may be
as many as runs.
"""

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, Final, Protocol

from smithers.engine.facts import Problem
from smithers.ids import SourceHash
from smithers.source.closure import SourceBundle
from smithers.source.errors import ImportFailed, SourceError
from smithers.source.loading import find_export, load_workflow, unload
from smithers.store.worker_store import WorkerStore
from smithers.workflow import Workflow
from worker.bodies import Bodies

LOAD_TIMEOUT_S: Final = 60.0
MAX_LOADED: Final = 256  # versions


class LoadFailed(Exception):
    """A workflow cannot be loaded from its stored source."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


class Library(Protocol):
    """Where executors get workflows from."""

    def using(self, source_hash: SourceHash) -> AbstractContextManager[None]:
        """Keep a version, once it is loaded, until the block is left."""

    async def get(self, source_hash: SourceHash, export: str | None) -> Workflow[Any]:
        """Return a workflow of a version in use; raises LoadFailed."""

    def find_export(self, source_hash: SourceHash, workflow: Workflow[Any]) -> str | None:
        """Return the export of another workflow of a loaded source; None: it has none."""


class Workflows:
    """A child's loaded workflows: a Library of stored sources."""

    def __init__(self, store: WorkerStore, bodies: Bodies) -> None:
        self._store = store
        self._bodies = bodies
        # By version, the least recently used first, and export.
        self._loaded: OrderedDict[SourceHash, dict[str | None, Workflow[Any]]] = OrderedDict()
        self._users: Counter[SourceHash] = Counter()
        self._loading: dict[tuple[SourceHash, str | None], asyncio.Task[Workflow[Any]]] = {}

    @contextmanager
    def using(self, source_hash: SourceHash) -> Iterator[None]:
        """Keep a version, once it is loaded, until the block is left."""
        self._users[source_hash] += 1
        try:
            yield
        finally:
            self._users[source_hash] -= 1
            if not self._users[source_hash]:
                del self._users[source_hash]
            self._unload_unused()

    async def get(self, source_hash: SourceHash, export: str | None) -> Workflow[Any]:
        """Return a workflow of a version in use, loading it once; raises LoadFailed."""
        version = self._loaded.get(source_hash)
        if version is not None and export in version:
            self._loaded.move_to_end(source_hash)
            return version[export]
        key = (source_hash, export)
        task = self._loading.get(key)
        if task is None:
            task = asyncio.create_task(self._load_in_use(source_hash, export))
            self._loading[key] = task
            task.add_done_callback(lambda _task: self._loading.pop(key, None))
        return await asyncio.shield(task)

    def find_export(self, source_hash: SourceHash, workflow: Workflow[Any]) -> str | None:
        """Return the module and name of another workflow of a loaded version; None: it has none."""
        return find_export(source_hash, workflow)

    def _unload_unused(self) -> None:
        surplus = len(self._loaded) - MAX_LOADED
        if surplus > 0:
            unused = [source_hash for source_hash in self._loaded if source_hash not in self._users]
            for source_hash in unused[:surplus]:
                del self._loaded[source_hash]
                unload(source_hash)

    async def _load_in_use(self, source_hash: SourceHash, export: str | None) -> Workflow[Any]:
        with self.using(source_hash):  # the run may have been stopped, and its import goes on
            return await self._load(source_hash, export)

    async def _load(self, source_hash: SourceHash, export: str | None) -> Workflow[Any]:
        version = self._loaded.setdefault(source_hash, {})
        text = await self._store.find_source(source_hash)
        if text is None:
            raise LoadFailed(
                Problem(
                    "SourceMissing", f"source {source_hash[:12]} is not stored", "SOURCE_BROKEN"
                )
            )
        try:
            async with asyncio.timeout(LOAD_TIMEOUT_S):
                # In a thread: an import may take seconds, and other runs continue meanwhile.
                workflow = await self._bodies.call_in_thread(
                    partial(_import, text, export), where=f"the import of {source_hash[:12]}"
                )
        except TimeoutError:
            problem = Problem(
                "ImportTimeout",
                f"the import took longer than {LOAD_TIMEOUT_S:g} s",
                "SOURCE_BROKEN",
            )
            raise LoadFailed(problem) from None
        except ImportFailed as error:
            problem = Problem(
                "ImportFailed", error.reason, "SOURCE_BROKEN", traceback=error.traceback
            )
            raise LoadFailed(problem) from error
        except SourceError as error:
            raise LoadFailed(
                Problem(type(error).__name__, error.reason, "SOURCE_BROKEN")
            ) from error
        version[export] = workflow
        return workflow


def _import(text: str, export: str | None) -> Workflow[Any]:
    bundle = SourceBundle.from_json(text, workflow_name=export)
    return load_workflow(bundle, export)
