"""Describe versions of workflows' sources, each in a throwaway process, which executes the author's imports."""

import asyncio
import os
import resource
import signal
from contextlib import suppress
from dataclasses import replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Final
from uuid import uuid4

import structlog

from smithers.complaints import Complaint
from smithers.errors import StoreError
from smithers.ids import WorkerId
from smithers.source.closure import SourceBundle
from smithers.source.description import Description, describe
from smithers.source.errors import SourceError
from smithers.store.descriptions import WantedDescription
from smithers.store.pool_store import PoolStore
from worker.descendants import mark_this_process, sweep
from worker.fork_server import Fork, ForkServer
from worker.processes import die_with_parent, until_readable

MAX_AT_ONCE: Final = 4
WANTED_EVERY_S: Final = 2.0
TIMEOUT_S: Final = 20.0
EXIT_S: Final = 1.0  # for the exit of a process that has stopped answering
MAX_ANSWER_BYTES: Final = 4_000_000
END: Final = b"\n"  # one line: the author's processes may keep the pipe open
NOT_NOW: Final = (StoreError, OSError, EOFError)  # no database, descriptor or fork: that may pass

LOG: Final = structlog.get_logger(__name__)


class Describer:
    """Has the requested versions described, a few at once: an import that hangs holds up no other."""

    def __init__(self, fork_server: ForkServer, store: PoolStore, *, root_dir: str) -> None:
        self._fork_server = fork_server
        self._store = store
        self._root_dir = root_dir
        self._wanted = asyncio.Event()
        self._under_way: set[WantedDescription] = set()
        self._complaint = Complaint()

    def hear(self) -> None:
        """Handle a hint that a description is requested."""
        self._wanted.set()

    async def run(self) -> None:
        """Describe what is requested until cancelled, the oldest request first."""
        self._under_way.clear()
        async with asyncio.TaskGroup() as describing:
            while True:
                self._wanted.clear()
                for one in await self._find_more():
                    self._under_way.add(one)
                    describing.create_task(self._describe(one), name="describe source")
                with suppress(TimeoutError):
                    async with asyncio.timeout(WANTED_EVERY_S):
                        await self._wanted.wait()

    async def _find_more(self) -> list[WantedDescription]:
        room = MAX_AT_ONCE - len(self._under_way)
        if not room:
            return []
        try:
            wanted = await self._store.list_wanted_descriptions()
        except NOT_NOW as error:
            self._complain(error)
            return []
        return [one for one in wanted if one not in self._under_way][:room]

    async def _describe(self, one: WantedDescription) -> None:
        try:
            text = await describe_in_process(
                self._fork_server, one.bundle, one.workflow_export, root_dir=self._root_dir
            )
            await self._store.put_description(one, text)
        except NOT_NOW as error:  # it is found again, a while later
            self._complain(error)
        else:
            self._wanted.set()  # there may be more than were begun
        finally:
            self._under_way.discard(one)

    def _complain(self, error: BaseException) -> None:
        if self._complaint.may_be_said():
            LOG.warning("describe_failed", error=f"{type(error).__name__}: {error}")


async def describe_in_process(
    fork_server: ForkServer, bundle: str, export: str, *, root_dir: str
) -> str:
    """Return a version's description as JSON; the process's abnormal end is part of it."""
    mark = WorkerId(uuid4())  # of this process alone: no worker has it
    receiver, sender = Pipe(duplex=False)
    with sender:
        process = fork_server.fork(
            _answer, bundle, export or None, root_dir, mark, handed=[sender.fileno()]
        )
    try:
        async with asyncio.timeout(TIMEOUT_S):
            return await _read(receiver)
    except TimeoutError:
        return _accident(f"importing the workflow took longer than {TIMEOUT_S:g} s").to_json()
    except asyncio.LimitOverrunError:
        return _failure(f"the description is over {MAX_ANSWER_BYTES} bytes").to_json()
    except asyncio.IncompleteReadError:
        return _accident(await _find_end(process)).to_json()
    except (ValueError, TypeError, RecursionError):
        return _failure("importing the workflow answered in its place: no description").to_json()
    finally:
        await _end(process, mark)


async def _read(receiver: Connection) -> str:
    reader = asyncio.StreamReader(limit=MAX_ANSWER_BYTES)
    with os.fdopen(os.dup(receiver.fileno()), "rb") as file, receiver:
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), file
        )
        try:
            answer = (await reader.readuntil(END)).decode()
        finally:
            transport.close()
    Description.from_json(answer)  # the author's modules may have written it
    return answer


async def _find_end(process: Fork) -> str:
    """Say what happened to a process that no longer answers: it may not have ended."""
    try:
        async with asyncio.timeout(EXIT_S):
            await until_readable(process.sentinel)
    except TimeoutError:
        return "importing the workflow closed the pipe for its description"
    return f"importing the workflow ended its process (exit code {process.wait()})"


async def _end(process: Fork, mark: WorkerId) -> None:
    """Kill the process, and those that the author's modules have started: in its group, or outside it by setsid."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()
    process.close()
    await sweep(mark)


def _failure(error: str) -> Description:
    return Description(
        workflow_name=None,
        input_schema=None,
        queue=None,
        isolation=None,
        database=None,
        error=error,
    )


def _accident(error: str) -> Description:
    return replace(_failure(error), is_accident=True)


def _answer(bundle: str, export: str | None, root_dir: str, mark: WorkerId, sender: int) -> None:
    """Run in the throwaway process."""
    die_with_parent()
    os.setsid()
    mark_this_process(mark)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.chdir(root_dir)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)
    try:
        description = describe(SourceBundle.from_json(bundle, workflow_name=export), export)
    except SourceError as error:
        description = _failure(error.reason)
    with os.fdopen(sender, "wb", closefd=False) as out:
        out.write(description.to_json().encode() + END)
    os._exit(0)  # do not wait for threads of the author's modules
