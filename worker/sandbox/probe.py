"""Try a jail, and say whether it holds: for whoever starts a server, before a task finds out.

It decides nothing: a command is run only when its own jail stands, whatever was found here.
"""

from typing import Any, Final

from smithers.tools.errors import ToolError
from worker.sandbox.commands import Commands, SandboxPolicy

UNAVAILABLE: Final = "unavailable: "
JAILED: Final = "jailed"
UNSAFE: Final = "unsafe: the commands of tools run without a jail"
WITHOUT_PROC: Final = "jailed, without /proc"
SECCOMP_FILTER: Final = 2
OWN_PROCESSES: Final = 2  # the first, and the command


async def probe_sandbox(policy: SandboxPolicy) -> str:
    """Say in a few words how commands are run here; a sentence that starts with `unavailable:` says why they are not."""
    if not policy.is_jailed:
        return UNSAFE
    commands = Commands(policy)
    try:
        seen = await commands.look_around()
    except ToolError as error:
        return f"{UNAVAILABLE}{error}"
    finally:
        commands.close()
    if leaks := _find_leaks(seen, policy):
        return f"{UNAVAILABLE}a jail does not hold here: {', '.join(leaks)}"
    return JAILED if seen["has_proc"] else WITHOUT_PROC


def _find_leaks(seen: dict[str, Any], policy: SandboxPolicy) -> list[str]:
    """Name what a jail has let through; a kernel that takes a call and does nothing would."""
    leaks = [f"{path} can be written to" for path in seen["writable"]]
    if len(seen["processes"]) > OWN_PROCESSES:
        leaks.append("processes of others are seen")
    if seen["filter"] != SECCOMP_FILTER or seen["no_new_privileges"] != 1:
        leaks.append("system calls are not filtered")
    if seen["interfaces"] and not policy.allow_network:
        leaks.append("the network can be reached")
    return leaks
