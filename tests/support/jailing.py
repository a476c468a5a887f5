"""Run commands in the jail from a process of its own, as root or as a plain user: `python -m tests.support.jailing`.

It reads one JSON object from stdin, what run_jailed was given, and writes a JSON list of how the commands ended.
"""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from smithers.tools.errors import ToolError
from smithers.tools.toolbox import Command
from worker.sandbox.commands import Commands, SandboxPolicy
from worker.sandbox.request import JailLimits
from worker.sandbox.seccomp import compile_filter, install_filter

REPOSITORY = Path(__file__).parents[2]
CANARY = "canary-7f3a1c"
PLAIN_USER = 65_534
UNREACHABLE = 77
USERS = {"root": 0, "plain": PLAIN_USER} if os.geteuid() == 0 else {"plain": os.geteuid()}


def run_jailed(
    user: int,
    root: Path,
    *commands: dict[str, Any],
    limits: dict[str, int] | None = None,
    allow_network: bool = False,
    is_jailed: bool = True,
    is_filtered: bool = False,
    before: tuple[str, ...] = (),
    prefix: Path | None = None,
) -> list[dict[str, Any]]:
    """Run commands one after another as a user whose environment holds a secret; say how each ended.

    `before`: a program that changes what it is given, and executes it. `prefix`: where Python is to be installed.
    """
    request = {
        "user": user,
        "root": str(root),
        "limits": limits or {},
        "allow_network": allow_network,
        "is_jailed": is_jailed,
        "is_filtered": is_filtered,
        "commands": commands,
        "prefix": sys.prefix if prefix is None else str(prefix),
    }
    ended = subprocess.run(
        [*before, sys.executable, "-m", "tests.support.jailing"],
        input=json.dumps(request),
        capture_output=True,
        check=False,
        cwd=REPOSITORY,
        env={"PATH": os.environ["PATH"], "SECRET": CANARY, "PYTHONDONTWRITEBYTECODE": "1"},
        text=True,
        timeout=110,
    )
    if ended.returncode == UNREACHABLE:
        pytest.skip("a plain user can reach no Python here, or not this tree")
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


async def _run_all(request: dict[str, Any]) -> list[dict[str, Any]]:
    commands = Commands(
        SandboxPolicy(
            root=Path(request["root"]),
            is_jailed=request["is_jailed"],
            allow_network=request["allow_network"],
            limits=JailLimits(**request["limits"]),
        )
    )
    ends: list[dict[str, Any]] = []
    for one in request["commands"]:
        command = Command(
            argv=tuple(one["argv"]),
            cwd=one.get("cwd", ""),
            stdin=one.get("stdin", "").encode(),
            timeout_s=one.get("timeout_s", 20),
            max_output_bytes=one.get("max_output_bytes", 100_000),
        )
        try:
            end = await commands.run(command)
        except ToolError as error:
            ends.append({"error": error.code, "text": str(error)})
        else:
            text = (end.stdout.content + end.stderr.content).decode("utf-8", "replace")
            ends.append({"exit_code": end.exit_code, "text": text})
    commands.close()
    return ends


def become(user: int) -> None:
    """Stop being root; where that user may not enter the home that holds this Python, the system's runs the jailer."""
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    if not os.access(sys.executable, os.X_OK):
        sys.executable = shutil.which("python3", path="/usr/bin:/usr/local/bin") or ""
    if not (sys.executable and os.access(Path(__file__), os.R_OK)):
        sys.exit(UNREACHABLE)


def main() -> None:
    request = json.loads(sys.stdin.read())
    sys.prefix = request["prefix"]
    if request["user"] != os.geteuid():
        become(request["user"])
    if request["is_filtered"]:  # as the default profile of a container is: no new namespaces
        install_filter(compile_filter(allow_network=False))
    sys.stdout.write(json.dumps(asyncio.run(_run_all(request))))


if __name__ == "__main__":
    main()
