"""Run commands beyond their limits in the cgroup of this process: `python -m tests.support.limiting USER ROOT IS_JAILED`.

What was seen goes to stdout, as JSON.
"""

import asyncio
import contextlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from smithers.tools.errors import ToolError, ToolTimedOut
from smithers.tools.toolbox import Command
from tests.support.jailing import become
from worker.sandbox.cgroups import find_place
from worker.sandbox.commands import Commands, SandboxPolicy
from worker.sandbox.probe import probe_sandbox
from worker.sandbox.request import JailLimits

MEMORY_BYTES = 96 << 20
PROCESSES = 40
# Each within its own limit, and together beyond the command's.
HUNGRY = "import os\nfor _ in range(3): os.fork()\nkept = bytearray(40 << 20)\nprint(len(kept))"
MANY = "for n in $(seq 100); do sleep 30 & done 2>&1; echo survived"


async def _try_all(root: Path, *, is_jailed: bool) -> dict[str, Any]:
    policy = SandboxPolicy(
        root=root,
        is_jailed=is_jailed,
        limits=JailLimits(memory_bytes=MEMORY_BYTES, processes=PROCESSES),
    )
    commands = Commands(policy)
    place = find_place()
    probed = await probe_sandbox(policy)
    hungry = ""
    try:
        await commands.run(_command("python3", "-c", HUNGRY))
    except ToolError as error:
        hungry = str(error)
    many = asyncio.create_task(commands.run(_command("bash", "-c", MANY, timeout_s=2)))
    most = 0
    while not many.done():
        peaks = [*place.glob("smithers-*/pids.peak")]
        counts = peaks or [*place.glob("smithers-*/pids.current")]
        most = max([most, *(int(path.read_text()) for path in counts)])
        await asyncio.sleep(0.01)
    with contextlib.suppress(ToolTimedOut):
        await many
    end = await commands.run(_command("echo", "hello"))
    deadline = time.monotonic() + 20
    while (
        left := [path.name for path in place.glob("smithers-*")]
    ) and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    commands.close()
    return {
        "limits": probed.cgroup_limits,
        "hungry": hungry,
        "most": most,
        "hello": end.stdout.content.decode(),
        "left": left,
    }


def _command(*argv: str, timeout_s: float = 60) -> Command:
    return Command(argv=argv, timeout_s=timeout_s, max_output_bytes=10_000)


def main() -> None:
    user, root, is_jailed = sys.argv[1:]
    if int(user) != os.geteuid():
        become(int(user))
    seen = asyncio.run(_try_all(Path(root), is_jailed=is_jailed == "1"))
    sys.stdout.write(json.dumps(seen))


if __name__ == "__main__":
    main()
