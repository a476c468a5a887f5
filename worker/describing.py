"""Describe a version of a workflow's source in a process that is thrown away: it executes the author's imports."""

import asyncio
import os
import resource
import signal
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import Final

from smithers.source.closure import SourceBundle
from smithers.source.description import Description, describe
from smithers.source.errors import SourceError

TIMEOUT_S: Final = 20.0
MAX_ANSWER_BYTES: Final = 4_000_000
END: Final = b"\n"  # the answer is one line: what the author's modules start may keep the pipe open


async def describe_in_process(
    nursery: ForkServerContext, bundle: str, export: str, *, root_dir: str
) -> str:
    """Return a version's description as JSON; what goes wrong with the process is part of it."""
    receiver, sender = nursery.Pipe(duplex=False)
    process = nursery.Process(target=_answer, args=(bundle, export or None, root_dir, sender))
    process.start()
    sender.close()
    try:
        async with asyncio.timeout(TIMEOUT_S):
            return await _read(receiver)
    except TimeoutError:
        return _failure(f"importing the workflow took longer than {TIMEOUT_S:g} s").to_json()
    except asyncio.LimitOverrunError:
        return _failure(f"the description is over {MAX_ANSWER_BYTES} bytes").to_json()
    except asyncio.IncompleteReadError:
        process.join()
        code = process.exitcode
        return _failure(f"importing the workflow ended its process (exit code {code})").to_json()
    finally:
        _end(process)


async def _read(receiver: Connection) -> str:
    reader = asyncio.StreamReader(limit=MAX_ANSWER_BYTES)
    with os.fdopen(os.dup(receiver.fileno()), "rb") as file, receiver:
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), file
        )
        try:
            return (await reader.readuntil(END)).decode()
        finally:
            transport.close()


def _end(process: ForkServerProcess) -> None:
    assert process.pid is not None
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # and what the author's modules started
    process.kill()
    process.join()
    process.close()


def _failure(error: str) -> Description:
    return Description(
        workflow_name=None,
        input_schema=None,
        queue=None,
        isolation=None,
        database=None,
        error=error,
    )


def _answer(bundle: str, export: str | None, root_dir: str, sender: Connection) -> None:
    """Be the process that is thrown away."""
    os.setsid()
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
    with os.fdopen(sender.fileno(), "wb", closefd=False) as out:
        out.write(description.to_json().encode() + END)
    os._exit(0)  # threads that the author's modules started do not count
