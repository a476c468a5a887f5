"""`smithers start`: start a run on a server."""

from typing import Annotated

import typer

from smithers.cli import options as o
from smithers.cli.console import note, print_json, print_line
from smithers.cli.up import InputText, read_input

WorkflowArgument = Annotated[
    str,
    typer.Argument(
        metavar="FILE",
        help="The workflow's file below the server's root; FILE:NAME picks one of several in it.",
        show_default=False,
    ),
]
ChosenId = Annotated[
    str | None,
    typer.Option("--run-id", metavar="ID", help="The run's id. [default: the server makes one]"),
]
Priority = Annotated[
    int | None,
    typer.Option(
        "--priority",
        min=-100,
        max=100,
        help="Runs with a higher priority start first. [default: 0]",
    ),
]
Key = Annotated[
    str | None,
    typer.Option(
        "--key",
        metavar="KEY",
        help="Idempotency key: repeated with the same key, the command starts only one run.",
    ),
]


def start(
    workflow: WorkflowArgument,
    *,
    input_text: InputText = None,
    run_id: ChosenId = None,
    priority: Priority = None,
    idempotency_key: Key = None,
    as_json: o.AsJson = False,
    server: o.ServerUrl = None,
    token: o.Token = None,
) -> None:
    """Start a run on a server, and print its id."""
    told = read_input(input_text)
    with o.open_client(server, token) as client:
        started = client.start(
            workflow, told, run_id=run_id, priority=priority, idempotency_key=idempotency_key
        )
    if as_json:
        print_json({"runId": started})
        return
    print_line(started)
    note(f"follow it with: {o.at_server(f'smithers events {started} --follow', server)}")
