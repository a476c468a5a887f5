"""Say which account of the host runs the embedded Postgres, and run programs as it.

Postgres refuses to run as root: a plain user runs it itself, root has it run by an account that
exists already. Guaranteed: no account is created, and no directory is opened to let one pass.
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
# postgres: there for this wherever PostgreSQL has been packaged. nobody: everywhere, but shared.
ACCOUNTS_FOR_ROOT: Final = ("postgres", "nobody")
# Names, not settings: what a dynamic linker may need. Everything else, above all secrets and PG*,
# stays out of processes that outlive their starter.
KEPT_VARIABLES: Final = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")


class EmbeddedPostgresError(StoreError):
    """The embedded Postgres cannot be had: start nothing that needs it, tell the operator."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerAccount:
    """Whose processes and files the server's are."""

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


def choose_account(data_dir: Path, *, pgdata: Path, name: str | None) -> ServerAccount:
    """Choose who runs the server of this data directory.

    As root: the owner of the database that is there, else `name`, else the owner of the data
    directory, else the first of ACCOUNTS_FOR_ROOT. Raises EmbeddedPostgresError if there is none,
    or if a plain user asks for another than itself.
    """
    if os.geteuid() != ROOT_UID:
        own = ServerAccount(uid=os.geteuid(), gid=os.getegid(), is_other=False)
        if name is not None and name != own.name:
            raise EmbeddedPostgresError(
                f"Only root can run Postgres as {name!r}; this process is {own.name!r}."
            )
        return own
    named = None if name is None else _find_account([name])
    if name is not None and named is None:
        raise EmbeddedPostgresError(f"There is no plain account {name!r} to run Postgres as.")
    # A database has one owner for life: Postgres refuses to serve it as any other.
    by_owner, by_place = _find_owner(pgdata), _find_owner(data_dir)
    chosen = by_owner or named or by_place or _find_account(ACCOUNTS_FOR_ROOT)
    if chosen is None:
        raise EmbeddedPostgresError(
            f"Postgres refuses to run as root, and none of {', '.join(ACCOUNTS_FOR_ROOT)} is an "
            "account here. Run as a plain user, name an account that exists, or use a Postgres of "
            "your own (DATABASE_URL)."
        )
    return chosen


def run_as(
    account: ServerAccount, argv: Sequence[str], *, pass_fds: Sequence[int] = ()
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; raises OSError if the account cannot execute it."""
    return subprocess.run(  # noqa: S603 - every argv is made in this package
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
        process_group=0,  # Ctrl-C at the terminal is ours to hear: it would leave initdb half done
    )


def find_barrier(account: ServerAccount, directory: Path) -> Path | None:
    """Return the uppermost directory on this path that the account cannot enter, or None."""
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
        if entry.pw_uid != ROOT_UID:
            return ServerAccount(uid=entry.pw_uid, gid=entry.pw_gid, is_other=True)
    return None
