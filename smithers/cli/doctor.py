"""`smithers doctor`: check everything that a server needs, and report problems before a server does."""

import asyncio
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final, assert_never

import typer

from smithers.cli import options as o
from smithers.cli.console import Exit, log_to_stderr, print_json, print_table
from smithers.cli.db import missing_at
from smithers.errors import SmithersError
from smithers.settings import ClientOptions, ServerOptions, read_client_options

if TYPE_CHECKING:
    from smithers.foundation import Database
    from smithers.store.checks import DatabaseCheck

SLOW_COMMIT_S: Final = 0.05
SKEW_S: Final = 1.0


class Verdict(StrEnum):
    """The result of a check."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was checked."""

    name: str
    verdict: Verdict
    told: str


def doctor(
    *,
    root_dir: o.RootDir = None,
    database_url: o.DatabaseUrl = None,
    database_direct_url: o.DatabaseDirectUrl = None,
    data_dir: o.DataDir = None,
    as_json: o.AsJson = False,
    server: o.ServerUrl = None,
    token: o.Token = None,
) -> None:
    """Check Python, the root, the sandbox, the database, its schema, speed and clock, and whether a server answers."""
    flags = locals()
    given = o.looking_options(flags)
    address = read_client_options({"url": server, "token": token}, os.environ)
    log_to_stderr(given)
    findings = asyncio.run(_look(given, address))
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        rows = ((finding.name, finding.verdict, finding.told) for finding in findings)
        print_table(("WHAT", "IS", "DETAIL"), rows, empty="")
    if any(finding.verdict is Verdict.FAILED for finding in findings):
        raise typer.Exit(Exit.FAILED)


async def _look(options: ServerOptions, address: ClientOptions) -> list[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    findings = [
        Finding("python", Verdict.OK, version),
        Finding("root", Verdict.OK, str(options.root_dir)),
    ]
    findings += await _try_sandbox(options)
    findings += await _try_database(options)
    findings.append(await _ask_server(address))
    return findings


async def _try_database(options: ServerOptions) -> list[Finding]:
    """Check the database; an embedded one that does not exist yet is not created for that."""
    from smithers.foundation import find_database
    from smithers.store.checks import check_database

    findings: list[Finding] = []
    try:
        if (place := missing_at(options)) is not None:
            told = f"none in {place} yet: the first `smithers serve` or `up` creates it"
            return [Finding("database", Verdict.OK, told)]
        async with find_database(options, os.environ) as database:
            findings.append(Finding("database", Verdict.OK, database.describe()))
            findings.append(_judge_way(database))
            check = await check_database(database.dsn, database.direct_dsn)
            findings += _judge(check, is_embedded=database.data_dir is not None)
    except (SmithersError, OSError) as error:
        findings.append(Finding("database", Verdict.FAILED, str(error)))
    return findings


async def _try_sandbox(options: ServerOptions) -> list[Finding]:
    """Try to run tools' commands: a server works without them, so this fails nothing."""
    from worker.sandbox.commands import SandboxPolicy
    from worker.sandbox.probe import JAILED, probe_sandbox

    found = await probe_sandbox(SandboxPolicy(root=options.root_dir))
    verdict = Verdict.OK if found.standing == JAILED else Verdict.WARNING
    return [
        Finding("sandbox", verdict, found.standing),
        # Most hosts have none: that is not a fault.
        Finding("sandbox", Verdict.OK, f"cgroup limits: {found.cgroup_limits}"),
    ]


def _judge(check: "DatabaseCheck", *, is_embedded: bool) -> Iterator[Finding]:
    """Say of each measurement whether it is good enough for a server."""
    yield Finding("postgres", Verdict.OK, check.version)
    yield _judge_schema(check.revision, is_embedded=is_embedded)
    yield Finding(
        "connections",
        Verdict.OK if check.connections < check.max_connections * 0.8 else Verdict.WARNING,
        f"{check.connections} of {check.max_connections}",
    )
    is_right = abs(check.skew_s) < SKEW_S
    told = f"{check.skew_s:+.3f} s from this host's" + ("" if is_right else ", which is ignored")
    yield Finding("clock", Verdict.OK if is_right else Verdict.WARNING, told)
    is_quick = check.commit_s < SLOW_COMMIT_S
    told = f"{check.commit_s * 1000:.1f} ms" + ("" if is_quick else ": every step waits for one")
    yield Finding("commit", Verdict.OK if is_quick else Verdict.WARNING, told)
    if check.hint_s is None:
        told = "none arrive: set DATABASE_DIRECT_URL to an address past the pooler"
        yield Finding("notifications", Verdict.FAILED, told)
    else:
        yield Finding("notifications", Verdict.OK, f"{check.hint_s * 1000:.1f} ms")


def _judge_way(database: "Database") -> Finding:
    from smithers.store.poolers import Way

    if database.warning is not None:
        return Finding("pooler", Verdict.FAILED, database.warning)
    match database.way:
        case Way.DIRECT:
            return Finding("pooler", Verdict.OK, "none")
        case Way.SESSION:
            return Finding("pooler", Verdict.OK, "in session mode")
        case Way.TRANSACTION:
            told = "in transaction mode: statements are planned at each call"
            return Finding("pooler", Verdict.WARNING, told)
        case way:
            assert_never(way)


def _judge_schema(revision: str | None, *, is_embedded: bool) -> Finding:
    from smithers.store.revisions import FROM_BEFORE, read_revisions

    known = read_revisions()
    if revision == known.head:
        return Finding("schema", Verdict.OK, revision)
    if known.is_newer(revision):
        return Finding("schema", Verdict.OK, f"{revision}, newer than this version's {known.head}")
    if revision in known.unreleased:
        return Finding("schema", Verdict.FAILED, f"{revision}, {FROM_BEFORE}")
    told = f"{revision or 'none'}, and this version needs {known.head}: "
    if is_embedded:
        return Finding("schema", Verdict.WARNING, told + "the next start migrates it")
    return Finding("schema", Verdict.FAILED, told + "run smithers db upgrade")


async def _ask_server(address: ClientOptions) -> Finding:
    from smithers.client import AsyncClient, ClientError

    async with AsyncClient(address.url, token=address.token, timeout_s=5) as client:
        try:
            is_ready = await client.is_ready()
        except ClientError as error:
            return Finding("server", Verdict.WARNING, str(error))
    told = f"{address.url} accepts {'requests' if is_ready else 'no requests now'}"
    return Finding("server", Verdict.OK if is_ready else Verdict.FAILED, told)
