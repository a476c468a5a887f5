"""The workflows that a child has loaded, by the hash of their source, so that versions coexist."""

import asyncio
from collections import OrderedDict
from functools import partial
from typing import Any, Final, Protocol

from smithers.engine.facts import Problem
from smithers.ids import SourceHash
from smithers.source.closure import SourceBundle
from smithers.source.errors import ImportFailed, SourceError
from smithers.source.loading import find_export, load_workflow
from smithers.store.worker_store import WorkerStore
from smithers.workflow import Workflow
from worker.bodies import Bodies

LOAD_TIMEOUT_S: Final = 60.0
MAX_LOADED: Final = 256


class LoadFailed(Exception):
    """A workflow cannot be loaded from its stored source."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


class Library(Protocol):
    """Where executors get workflows from."""

    async def get(self, source_hash: SourceHash, export: str | None) -> Workflow[Any]:
        """Return a workflow; raises LoadFailed."""

    def find_export(self, source_hash: SourceHash, workflow: Workflow[Any]) -> str | None:
        """Return the export of another workflow of a loaded source; None: it has none."""


class Workflows:
    """A child's loaded workflows: a Library of stored sources."""

    def __init__(self, store: WorkerStore, bodies: Bodies) -> None:
        self._store = store
        self._bodies = bodies
        self._loaded: OrderedDict[tuple[SourceHash, str | None], Workflow[Any]] = OrderedDict()
        self._loading: dict[tuple[SourceHash, str | None], asyncio.Task[Workflow[Any]]] = {}

    async def get(self, source_hash: SourceHash, export: str | None) -> Workflow[Any]:
        """Return a workflow, loading it once; raises LoadFailed."""
        key = (source_hash, export)
        found = self._loaded.get(key)
        if found is not None:
            self._loaded.move_to_end(key)
            return found
        task = self._loading.get(key)
        if task is None:
            task = asyncio.create_task(self._load(source_hash, export))
            self._loading[key] = task
            task.add_done_callback(lambda _task: self._loading.pop(key, None))
        return await asyncio.shield(task)

    def find_export(self, source_hash: SourceHash, workflow: Workflow[Any]) -> str | None:
        """Return the module and name of another workflow of a loaded version; None: it has none."""
        return find_export(source_hash, workflow)

    async def _load(self, source_hash: SourceHash, export: str | None) -> Workflow[Any]:
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
        self._loaded[source_hash, export] = workflow
        if len(self._loaded) > MAX_LOADED:
            self._loaded.popitem(last=False)
        return workflow


def _import(text: str, export: str | None) -> Workflow[Any]:
    bundle = SourceBundle.from_json(text, workflow_name=export)
    return load_workflow(bundle, export)
