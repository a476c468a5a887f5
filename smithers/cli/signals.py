"""`smithers signal`: send a run a signal."""

from typing import Annotated

import typer

from smithers.cli import options as o
from smithers.cli.console import note, print_json, read_json


def signal(
    run: o.RunArgument,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The signal's name.", show_default=False)
    ],
    *,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="JSON",
            help="The signal's data: JSON, @FILE, or @- for stdin. [default: {}]",
        ),
    ] = None,
    correlation_id: Annotated[
        str | None,
        typer.Option("--correlation", metavar="ID", help="Which of several waits it is for."),
    ] = None,
    signal_id: Annotated[
        str | None,
        typer.Option("--id", metavar="ID", help="An id: a signal sent twice with it counts once."),
    ] = None,
    as_json: o.AsJson = False,
    server: o.ServerUrl = None,
    token: o.Token = None,
) -> None:
    """Send a signal; one that no node waits for yet is kept."""
    value = {} if data is None else read_json("--data", data, example='"yes"')
    with o.open_client(server, token) as client:
        record = client.signal(run, name, value, correlation_id=correlation_id, signal_id=signal_id)
    if as_json:
        print_json(record.to_wire())
    else:
        note(f"signal {name} of run {run} is number {record.seq}")
