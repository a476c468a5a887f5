"""`smithers check`: what the files below the root would do to waiting runs, before anybody resumes one with them."""

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from smithers.cli import options as o
from smithers.cli.console import CommandFailed, Exit, log_to_stderr, note, print_json, print_table
from smithers.cli.db import find_existing
from smithers.settings import ServerOptions
from smithers.texts import counted

if TYPE_CHECKING:
    from smithers.checking import Forecast
    from smithers.source.beneath import RootDirectory
    from smithers.store.run_facts import LoadedRun
    from smithers.store.workflows import ParkedRun
    from smithers.workflow import Workflow

PAGE: Final = 100
UNCHANGED: Final = "its source is unchanged"
GONE: Final = "the file is gone: it keeps its own source"

OnlyFile = Annotated[
    str | None,
    typer.Argument(
        metavar="FILE", help="Only runs of this file, below the root.", show_default=False
    ),
]


def check(
    file: OnlyFile = None,
    *,
    as_json: o.AsJson = False,
    root_dir: o.RootDir = None,
    database_url: o.DatabaseUrl = None,
    data_dir: o.DataDir = None,
) -> None:
    """Render every parked run with the files below the root, and say which go on, which change, which fail.

    The files are imported here, as by a worker; no task is run, and nothing is written. A run keeps its source
    until it is resumed with another.
    """
    from smithers.cli.up import place_below

    given = o.looking_options(locals())
    only = None if file is None else place_below(given.root_dir, file).partition(":")[0]
    log_to_stderr(given)
    with redirect_stdout(sys.stderr):  # what the authors' code prints is no result
        rows = asyncio.run(_check_all(given, only))
    counts = Counter(row["verdict"] for row in rows)
    if as_json:
        print_json({"runs": rows, "counts": counts})
    else:
        print_table(
            ("RUN", "WORKFLOW", "STATUS", "WOULD", "WHY"),
            (
                (row["runId"], row["workflowName"], row["status"], row["verdict"], _why(row))
                for row in rows
            ),
            empty="no run is parked",
        )
        note(", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items())))
    if counts["fails"]:
        raise CommandFailed(
            f"{counted(counts['fails'], 'parked run')} could not go on with this source",
            hint="each keeps its own, unless it is resumed with this one",
            exit_code=Exit.FAILED,
        )


async def _check_all(options: ServerOptions, only: str | None) -> list[dict[str, Any]]:
    from smithers.source.beneath import RootDirectory
    from worker.rendering import install_alarm

    install_alarm()
    with RootDirectory(options.root_dir) as root:
        versions = _Versions(root)
        return [
            _row(run, versions.check(run, loaded))
            async for run, loaded in _parked(options)
            if only is None or run.workflow_path == only
        ]


async def _parked(options: ServerOptions) -> AsyncIterator[tuple["ParkedRun", "LoadedRun"]]:
    from smithers.store.connections import open_connection
    from smithers.store.run_facts import load_runs
    from smithers.store.schema import require_schema
    from smithers.store.workflows import list_parked_runs

    async with (
        find_existing(options) as place,
        open_connection(place.dsn, role="command") as connection,
    ):
        await require_schema(connection)
        after = None
        while page := await list_parked_runs(connection, after=after, limit=PAGE):
            loaded = await load_runs(connection, [run.run_id for run in page])
            for run, known in zip(page, loaded, strict=True):
                if not isinstance(known, Exception):  # gone meanwhile
                    yield run, known
            after = page[-1].run_id


class _Versions:
    """The workflows below the root, each loaded once."""

    def __init__(self, root: "RootDirectory") -> None:
        self._root = root
        self._loaded: dict[tuple[str, str | None], tuple[str, Workflow[Any]] | Forecast] = {}

    def check(self, run: "ParkedRun", loaded: "LoadedRun") -> "Forecast":
        from smithers.checking import Effect, Forecast, check_run
        from worker.rendering import render_guard

        place = (run.workflow_path, run.workflow_export)
        if place not in self._loaded:
            self._loaded[place] = self._load(*place)
        found = self._loaded[place]
        if isinstance(found, Forecast):
            return found
        source_hash, workflow = found
        if source_hash == run.source_hash:
            return Forecast(effect=Effect.GOES_ON, reason=UNCHANGED)
        return check_run(run, loaded, workflow, guard=render_guard(workflow.render_timeout_s))

    def _load(self, path: str, export: str | None) -> "tuple[str, Workflow[Any]] | Forecast":
        from smithers.checking import Effect, Forecast
        from smithers.source.closure import read_bundle
        from smithers.source.errors import SourceError, SourceNotFound
        from smithers.source.loading import find_workflow, load_module

        try:
            bundle = read_bundle(self._root, path if export is None else f"{path}:{export}")
            return bundle.source_hash, find_workflow(load_module(bundle), export)
        except SourceNotFound:
            return Forecast(effect=Effect.GOES_ON, reason=GONE)
        except SourceError as error:
            return Forecast(effect=Effect.FAILS, reason=error.reason)


def _row(run: "ParkedRun", forecast: "Forecast") -> dict[str, Any]:
    return {
        "runId": run.run_id,
        "workflowName": run.workflow_name,
        "workflowPath": run.workflow_path,
        "status": run.status,
        "verdict": forecast.effect,
        "lost": [{"nodeId": key.node_id, "iteration": key.iteration} for key in forecast.lost],
        "added": [{"nodeId": key.node_id, "iteration": key.iteration} for key in forecast.added],
        "reason": forecast.reason,
    }


def _why(row: dict[str, Any]) -> str:
    parts = [row["reason"]] if row["reason"] else []
    for name, sign in (("lost", "-"), ("added", "+")):
        parts += [f"{sign}{node['nodeId']}" for node in row[name]]
    return " ".join(parts)
