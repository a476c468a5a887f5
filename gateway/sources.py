"""Turn a workflow's path into a stored version of its source and its description.

The gateway reads source, and never runs any. A version without a description is described by a throwaway process
of the pool: its first start requests that and waits a little; without an answer the run is accepted. A failed
description is tried again by later starts, and counts until a new one arrives.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Generic, TypeVar

from smithers.ids import SourceHash
from smithers.schemas import Validator, compile_schema
from smithers.source.closure import SourceBundle, SourceReader
from smithers.source.errors import SourceNotFound
from smithers.store.connections import Pool
from smithers.store.descriptions import (
    DescriptionRow,
    find_description,
    keep_source,
    want_description,
)
from smithers.store.hints import Channel, Hints

DESCRIBE_S: Final = 5.0  # how long a start waits for a description
LOOK_AGAIN_S: Final = 0.2  # hints may be lost
GIVEN_UP_S: Final = 30.0  # how long starts do not wait again for one that did not arrive
KEPT_S: Final = 600.0  # when a stored source is checked again: retention may have removed it
KNOWN: Final = 1_000
SWIFT_S: Final = 0.002  # a read that took less may run on the loop the next time

Key = TypeVar("Key")
Value = TypeVar("Value")
Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class KnownWorkflow:
    """What a start needs to know about a workflow; if `row.error` is set, nothing else is."""

    row: DescriptionRow
    validator: Validator | None


@dataclass(frozen=True, slots=True)
class Unknown:
    """A version whose description was requested but did not arrive."""

    failed: DescriptionRow | None = None  # its known failure, if there is one
    given_up_at: float = float("-inf")  # by the monotonic clock


class Bounded(Generic[Key, Value]):
    """A mapping that forgets its oldest entries; of one thread."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._entries: dict[Key, Value] = {}

    def get(self, key: Key) -> Value | None:
        """Look an entry up."""
        return self._entries.get(key)

    def put(self, key: Key, value: Value) -> None:
        """Keep an entry as the newest."""
        self._entries.pop(key, None)
        self._entries[key] = value
        if len(self._entries) > self._size:
            del self._entries[next(iter(self._entries))]


class Sources:
    """Versions of workflows, read, stored and described; one for each database of a process."""

    def __init__(self, reader: SourceReader | None, pool: Pool, hints: Hints) -> None:
        self._reader = reader
        self._pool = pool
        self._hints = hints
        self._found: dict[str, SourceBundle] = {}  # in this turn of the loop
        self._reads: dict[str, asyncio.Task[SourceBundle]] = {}
        self._swift: Bounded[str, bool] = Bounded(KNOWN)
        self._kept: Bounded[SourceHash, float] = Bounded(KNOWN)
        self._known: Bounded[tuple[SourceHash, str], KnownWorkflow] = Bounded(KNOWN)
        self._unknown: Bounded[tuple[SourceHash, str], Unknown] = Bounded(KNOWN)
        self._describing: dict[tuple[SourceHash, str], asyncio.Task[KnownWorkflow | None]] = {}
        self._news: asyncio.Event = asyncio.Event()

    async def read(self, workflow_path: str) -> SourceBundle:
        """Read a version from the disk; raises SourceError.

        Requests of one turn of the loop share a read: it begins after all of them arrived. A cached, unchanged version is
        checked on the loop, if that was fast before (a thread costs more); anything else is read in a thread.
        """
        if self._reader is None:
            raise SourceNotFound("This server reads no source.")
        known = self._find(self._reader, workflow_path)
        if known is not None:
            return known
        reading = self._reads.get(workflow_path)
        if reading is None:
            reading = asyncio.create_task(
                self._read(self._reader, workflow_path), name="read source"
            )
            self._reads[workflow_path] = reading
        return await asyncio.shield(reading)

    def _find(self, reader: SourceReader, workflow_path: str) -> SourceBundle | None:
        """Return a cached version that was checked in this turn of the loop: its requests had all arrived before that."""
        known = self._found.get(workflow_path)
        if known is None and self._swift.get(workflow_path):
            known, is_swift = _timed(reader.find, workflow_path)
            if known is not None:
                self._swift.put(workflow_path, is_swift)
                self._found[workflow_path] = known
                asyncio.get_running_loop().call_soon(self._found.pop, workflow_path)
        return known

    async def _read(self, reader: SourceReader, workflow_path: str) -> SourceBundle:
        del self._reads[workflow_path]  # the files may have changed before the next request
        bundle, is_swift = await asyncio.to_thread(_timed, reader.read, workflow_path)
        self._swift.put(workflow_path, is_swift)
        return bundle

    async def keep(self, bundle: SourceBundle) -> SourceHash:
        """Store a version; does nothing if it was stored recently."""
        source_hash = bundle.source_hash
        kept_at = self._kept.get(source_hash)
        if kept_at is None or time.monotonic() - kept_at > KEPT_S:
            await keep_source(self._pool, source_hash, bundle.to_json())
            self._kept.put(source_hash, time.monotonic())
        return source_hash

    async def describe(self, bundle: SourceBundle) -> KnownWorkflow | None:
        """Return a stored version's description; None if none arrives in time."""
        key = (bundle.source_hash, bundle.workflow_name or "")
        known = self._known.get(key)
        if known is not None:
            return known
        describing = self._describing.get(key)
        if describing is None:
            describing = asyncio.create_task(self._wait_for(key), name="describe")
            self._describing[key] = describing
            describing.add_done_callback(lambda _done: self._describing.pop(key, None))
        return await asyncio.shield(describing)

    def hear(self, _names: frozenset[str] | None) -> None:
        """Handle a hint that sources were described."""
        self._news.set()

    async def _wait_for(self, key: tuple[SourceHash, str]) -> KnownWorkflow | None:
        row = await find_description(self._pool, *key)
        if row is None or row.error is not None:
            row = await self._ask(key, row)
        if row is None:
            return None
        known = KnownWorkflow(row, compile_schema(row.input_schema))
        if row.error is None:  # failures expire in the database
            self._known.put(key, known)
        return known

    async def _ask(
        self, key: tuple[SourceHash, str], failed: DescriptionRow | None
    ) -> DescriptionRow | None:
        """Request a version's description, and wait for it; if none arrives, its known failure counts."""
        before = self._unknown.get(key) or Unknown()
        failed = failed or before.failed
        self._unknown.put(key, replace(before, failed=failed))
        is_hopeless = time.monotonic() - before.given_up_at < GIVEN_UP_S
        if failed is not None and is_hopeless:
            # One that takes too long is not requested again at each start.
            return failed
        if await want_description(self._pool, *key):
            # Once: we hear our own hint as well, and would look and hint for as long as nobody answers.
            self._hints.send(Channel.SOURCES, [key[0]])
        ends = time.monotonic() + (0 if is_hopeless else DESCRIBE_S)
        while True:
            self._news.clear()
            row = await find_description(self._pool, *key)
            if row is not None:
                return row
            if time.monotonic() >= ends:
                self._unknown.put(key, Unknown(failed, time.monotonic()))
                return failed
            await self._next_look()

    async def _next_look(self) -> None:
        try:
            async with asyncio.timeout(LOOK_AGAIN_S):
                await self._news.wait()
        except TimeoutError:
            return


def _timed(read: Callable[[str], Found], workflow_path: str) -> tuple[Found, bool]:
    """Read a version, and say whether that was fast."""
    began = time.perf_counter()
    found = read(workflow_path)
    return found, time.perf_counter() - began < SWIFT_S
