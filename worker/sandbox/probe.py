"""Try a jail, and report whether it holds, before a task finds out.

It decides nothing: a command runs only in its own working jail, whatever was found here.
"""

from dataclasses import dataclass
from typing import Any, Final

from smithers.tools.errors import ToolError
from worker.sandbox.commands import Commands, SandboxPolicy

JAILED: Final = "jailed"
UNSAFE: Final = "unsafe: the commands of tools run without a jail"
WITHOUT_PROC: Final = "jailed, without /proc"
SECCOMP_FILTER: Final = 2
OWN_PROCESSES: Final = 2  # the first, and the command


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """How commands run here, in a few words."""

    standing: str
    is_available: bool
    cgroup_limits: str  # yes or no, with a reason

    def __str__(self) -> str:
        """Return all of it as text."""
        if not self.is_available:
            return f"unavailable: {self.standing}"
        return f"{self.standing}; cgroup limits: {self.cgroup_limits}"


async def probe_sandbox(policy: SandboxPolicy) -> Probed:
    """Inspect a jail from inside, without running a command."""
    commands = Commands(policy)
    try:
        seen = await commands.look_around()
    except ToolError as error:
        return Probed(standing=str(error), is_available=False, cgroup_limits="no")
    finally:
        commands.close()
    limits: str = seen["cgroup_limits"]
    if not policy.is_jailed:
        return Probed(standing=UNSAFE, is_available=True, cgroup_limits=limits)
    if leaks := _find_leaks(seen, policy):
        standing = f"a jail does not hold here: {', '.join(leaks)}"
        return Probed(standing=standing, is_available=False, cgroup_limits=limits)
    standing = JAILED if seen["has_proc"] else WITHOUT_PROC
    return Probed(standing=standing, is_available=True, cgroup_limits=limits)


def _find_leaks(seen: dict[str, Any], policy: SandboxPolicy) -> list[str]:
    """Name what a jail has let through, e.g. on a kernel that accepts a call and ignores it."""
    leaks = [f"{path} can be written to" for path in seen["writable"]]
    if len(seen["processes"]) > OWN_PROCESSES:
        leaks.append("processes of others are seen")
    if seen["filter"] != SECCOMP_FILTER or seen["no_new_privileges"] != 1:
        leaks.append("system calls are not filtered")
    if seen["interfaces"] and not policy.allow_network:
        leaks.append("the network can be reached")
    return leaks
