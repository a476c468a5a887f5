"""Answer what runs ask people: `approvals`, `approve`, `deny`."""

import os
from typing import Annotated, Any

import typer

from smithers.cli import options as o
from smithers.cli.console import CommandFailed, Exit, note, print_json, print_table
from smithers.cli.runs import span

NodeArgument = Annotated[
    str, typer.Argument(metavar="NODE", help="The approval's node.", show_default=False)
]
Note = Annotated[str | None, typer.Option("--note", metavar="TEXT", help="What to tell the run.")]
Iteration = Annotated[int, typer.Option("--iteration", min=0, help="Of a node in a loop.")]
By = Annotated[
    str | None, typer.Option("--by", metavar="NAME", help="Who decides. [default: $USER]")
]


def approvals(
    *, as_json: o.AsJson = False, server: o.ServerUrl = None, token: o.Token = None
) -> None:
    """List what waits for somebody's decision, oldest first."""
    with o.open_client(server, token) as client:
        asked = client.list_approvals()
    if as_json:
        print_json({"approvals": [approval.to_wire() for approval in asked]})
        return
    print_table(
        ("RUN", "NODE", "QUESTION", "WAITS"),
        (
            (
                approval.run_id,
                approval.node_id,
                approval.request_title or approval.label or "",
                span(approval.waiting_ms / 1000),
            )
            for approval in asked
        ),
        empty="nothing waits for an approval",
    )


def approve(
    run: o.RunArgument,
    node: NodeArgument,
    *,
    text: Note = None,
    iteration: Iteration = 0,
    by: By = None,
    server: o.ServerUrl = None,
    token: o.Token = None,
) -> None:
    """Say yes; the run goes on by itself."""
    _decide("approve", run, node, text=text, iteration=iteration, by=by, server=server, token=token)


def deny(
    run: o.RunArgument,
    node: NodeArgument,
    *,
    text: Note = None,
    iteration: Iteration = 0,
    by: By = None,
    server: o.ServerUrl = None,
    token: o.Token = None,
) -> None:
    """Say no; what that means for the run its workflow says."""
    _decide("deny", run, node, text=text, iteration=iteration, by=by, server=server, token=token)


def _decide(
    word: str,
    run: str,
    node: str,
    *,
    text: str | None,
    iteration: int,
    by: str | None,
    server: str | None,
    token: str | None,
) -> None:
    from smithers.client import Conflict

    told: dict[str, Any] = {
        "note": text,
        "iteration": iteration,
        "decided_by": by or os.environ.get("USER"),
    }
    with o.open_client(server, token) as client:
        decide = client.approve if word == "approve" else client.deny
        try:
            decide(run, node, **told)
        except Conflict as error:
            raise CommandFailed(
                str(error), hint=f"smithers inspect {run} says where it is", exit_code=Exit.FAILED
            ) from error
    note(f"{node} of run {run}: {'approved' if word == 'approve' else 'denied'}")
