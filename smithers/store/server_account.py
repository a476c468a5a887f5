"""Say which account of the host runs the embedded Postgres, and run programs as it.

Postgres refuses to be root's. A plain user runs it as itself; root runs it as an account that exists already. Guaranteed:
no account is ever created, and no directory is made readable so that an account can pass.
Knows nothing of Postgres' files or of its protocol.
"""

import os
import pwd
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from smithers.errors import StoreError

ROOT_UID: Final = 0
# postgres: made for this by most distributions' packages. nobody: shared with others, but everywhere.
ACCOUNTS_FOR_ROOT: Final = ("postgres", "nobody")
# Names, not settings: what a dynamic linker may need. Everything else, secrets and PG* above all, stays out of a process
# that outlives its starter.
KEPT_VARIABLES: Final = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")


class EmbeddedPostgresError(StoreError):
    """The embedded Postgres cannot be had: start nothing that needs it, tell the operator."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerAccount:
    """Whom the server's processes and files belong to."""

    uid: int
    gid: int
    is_other: bool  # we are root, and it is not

    @property
    def name(self) -> str:
        """Its name in the passwd database, else its number."""
        try:
            return pwd.getpwuid(self.uid).pw_name
        except KeyError:
            return str(self.uid)


def choose_account(data_dir: Path, *, database_dir: Path, name: str | None) -> ServerAccount:
    """Choose who runs the server of this data directory.

    As root: the owner of the database that is there, else `name`, else the owner of the directory, else the first of
    ACCOUNTS_FOR_ROOT. Raises EmbeddedPostgresError if the host has no such account, or a plain user asks for another one.
    """
    if os.geteuid() != ROOT_UID:
        own = ServerAccount(uid=os.geteuid(), gid=os.getegid(), is_other=False)
        if name is not None and name != own.name:
            raise EmbeddedPostgresError(
                f"Only root can run the embedded Postgres as {name!r}; this process is {own.name!r}."
            )
        return own
    named = None if name is None else _find_account([name])
    if name is not None and named is None:
        raise EmbeddedPostgresError(f"There is no account {name!r} to run the embedded Postgres.")
    # A database has one owner for life: Postgres refuses any other.
    chosen = (
        _find_owner(database_dir)
        or named
        or _find_owner(data_dir)
        or _find_account(ACCOUNTS_FOR_ROOT)
    )
    if chosen is None:
        raise EmbeddedPostgresError(
            "Postgres refuses to run as root, and none of the accounts "
            f"{', '.join(ACCOUNTS_FOR_ROOT)} exists. Run as a plain user, name an account that "
            "exists, or use a Postgres of your own (DATABASE_URL)."
        )
    return chosen


def run_as(
    account: ServerAccount, argv: Sequence[str], *, pass_fds: Sequence[int] = ()
) -> subprocess.CompletedProcess[str]:
    """Run a program as the account and return its exit code and what it wrote; raises OSError if it cannot be executed."""
    return subprocess.run(
        argv,
        user=account.uid if account.is_other else None,
        group=account.gid if account.is_other else None,
        extra_groups=[] if account.is_other else None,
        env=clean_environment(),
        cwd="/",  # the current one may be closed to the account
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        pass_fds=pass_fds,
    )


def find_barrier(account: ServerAccount, directory: Path) -> Path | None:
    """Return the uppermost directory on the way to this one that the account cannot enter, or None."""
    # The kernel is asked, not the mode bits: they do not tell of access lists.
    script = 'for d do test -x "$d" || { printf %s "$d"; exit; }; done'
    way = [str(step) for step in (*reversed(directory.parents), directory)]
    barrier = run_as(account, ["/bin/sh", "-c", script, "sh", *way]).stdout
    return Path(barrier) if barrier else None


def clean_environment() -> dict[str, str]:
    """Return the environment of the server and its tools."""
    kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC", **kept}


def _find_owner(directory: Path) -> ServerAccount | None:
    try:
        found = directory.stat()
    except FileNotFoundError:
        return None
    if found.st_uid == ROOT_UID:
        return None
    return ServerAccount(uid=found.st_uid, gid=found.st_gid, is_other=True)


def _find_account(names: Sequence[str]) -> ServerAccount | None:
    for name in names:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return ServerAccount(uid=entry.pw_uid, gid=entry.pw_gid, is_other=True)
    return None
