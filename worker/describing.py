"""Describe a version of a workflow's source in a process that is thrown away: it executes the author's imports.

`python -P -m worker.describing` reads {"bundle", "workflow_export"} from stdin and writes the description's JSON as the last
line of its stdout, behind a mark: what the author's modules print comes before it.
"""

import asyncio
import os
import resource
import sys
from typing import Final

import orjson

from smithers.source.closure import SourceBundle
from smithers.source.description import Description, describe
from smithers.source.errors import SourceError

TIMEOUT_S: Final = 20.0
MAX_ANSWER_BYTES: Final = 4_000_000
MARK: Final = b"\x1esmithers-description:"


async def describe_in_process(
    bundle: str, export: str, *, environment: dict[str, str], root_dir: str
) -> str:
    """Return a version's description as JSON; what goes wrong with the process is part of it."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        "worker.describing",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        cwd=root_dir,
        env=environment,
        start_new_session=True,
    )
    request = orjson.dumps({"bundle": bundle, "workflow_export": export or None})
    try:
        async with asyncio.timeout(TIMEOUT_S):
            answer = await _talk(process, request)
    except TimeoutError:
        return _failure(f"importing the workflow took longer than {TIMEOUT_S:g} s").to_json()
    finally:
        if process.returncode is None:
            os.killpg(process.pid, 9)
            await process.wait()
    if answer is None:
        return _failure(
            f"importing the workflow ended its process (exit code {process.returncode})"
        ).to_json()
    return answer


async def _talk(process: asyncio.subprocess.Process, request: bytes) -> str | None:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(request)
    process.stdin.write_eof()
    tail = b""
    while chunk := await process.stdout.read(65_536):
        tail = (tail + chunk)[-MAX_ANSWER_BYTES:]
        if MARK in tail and tail.endswith(b"\n"):
            break
    _, mark, answer = tail.rpartition(MARK)
    if not mark:
        await process.wait()
        return None
    return answer.decode()


def _failure(error: str) -> Description:
    return Description(
        workflow_name=None,
        input_schema=None,
        queue=None,
        isolation=None,
        database=None,
        error=error,
    )


def main() -> None:
    """Describe what stdin holds."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    request = orjson.loads(sys.stdin.buffer.read())
    answer = os.dup(1)  # the author's modules may close or replace sys.stdout
    export = request["workflow_export"]
    try:
        bundle = SourceBundle.from_json(request["bundle"], workflow_name=export)
        description = describe(bundle, export)
    except SourceError as error:
        description = _failure(error.reason)
    with os.fdopen(answer, "wb", closefd=True) as out:
        out.write(MARK + description.to_json().encode() + b"\n")
    os._exit(0)  # threads that the author's modules started do not count


if __name__ == "__main__":
    main()
