"""Answer runs' questions to people: `approvals`, `approve`, `deny`, `answer`."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smithers.cli import options as o
from smithers.cli.console import (
    CommandFailed,
    Exit,
    note,
    print_fields,
    print_json,
    print_line,
    print_table,
    read_json,
)
from smithers.cli.runs import span
from smithers.texts import command_line

if TYPE_CHECKING:
    from smithers.client import Approval

NodeArgument = Annotated[
    str, typer.Argument(metavar="NODE", help="The node that asks.", show_default=False)
]
Note = Annotated[str | None, typer.Option("--note", metavar="TEXT", help="A note for the run.")]
Iteration = Annotated[
    int,
    typer.Option(
        "--iteration",
        min=0,
        help="For a node in a loop, counted from 0: `NODE · 2` is 1. For a budget, how often it was granted.",
    ),
]
By = Annotated[
    str | None, typer.Option("--by", metavar="NAME", help="Who decides. [default: $USER]")
]


def approvals(
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN", help="Only this run's, each question in full.", show_default=False
        ),
    ] = None,
    *,
    as_json: o.AsJson = False,
    server: o.ServerUrl = None,
    token: o.Token = None,
) -> None:
    """List pending approvals, oldest first."""
    with o.open_client(server, token) as client:
        asked = [one for one in client.list_approvals() if run in {None, one.run_id}]
        if run is not None and not asked:
            client.get(run)  # raises NotFound for a run that does not exist
    if as_json:
        print_json({"approvals": [approval.to_wire() for approval in asked]})
        return
    if run is not None and asked:
        for approval in asked:
            print_fields(_in_full(approval))
            print_line("")
        return
    print_table(
        ("RUN", "NODE", "WAITS", "QUESTION"),
        (
            (
                approval.run_id,
                node_words(approval),
                span(approval.waiting_ms / 1000),
                _question(approval),
            )
            for approval in asked
        ),
        empty="nothing waits for an approval",
    )


def _in_full(approval: "Approval") -> Iterator[tuple[str, str]]:
    yield "node", node_words(approval)
    yield "question", _question(approval)
    if approval.request_summary:
        yield "summary", approval.request_summary
    if approval.request_schema is not None:
        yield "form", json.dumps(approval.request_schema, ensure_ascii=False)
    for error in approval.request_errors or ():
        yield "wrong", json.dumps(error, ensure_ascii=False)
    yield "waits", span(approval.waiting_ms / 1000)


def node_words(approval: "Approval") -> str:
    """Return an approval's node as a command names it: without the flag, it means a loop's first iteration."""
    return " ".join((approval.node_id, *iteration_flags(approval)))


def iteration_flags(approval: "Approval") -> tuple[str, ...]:
    """Return the flag, and its value, that a command needs to name an approval in a loop."""
    return ("--iteration", str(approval.iteration)) if approval.iteration else ()


def _question(approval: "Approval") -> str:
    title = approval.request_title or approval.label or ""
    options = ", ".join(approval.request_options or ())
    match approval.request_mode:
        case "select":
            return f"{title} (one of {options})"
        case "rank":
            return f"{title} (rank {options})"
        case "form":
            return f"{title} (a form)"
        case _:
            return title


def approve(
    run: o.RunArgument,
    node: NodeArgument,
    *,
    select: Annotated[
        str | None, typer.Option("--select", metavar="OPTION", help="The chosen option.")
    ] = None,
    rank: Annotated[
        str | None,
        typer.Option(
            "--rank",
            metavar="A,B,…",
            help="All of the options, best first; as JSON, '[\"A\",…]', if they have commas.",
        ),
    ] = None,
    text: Note = None,
    iteration: Iteration = 0,
    by: By = None,
    server: o.ServerUrl = None,
    token: o.Token = None,
) -> None:
    """Approve, or choose; the run then resumes by itself."""
    if select is not None and rank is not None:
        raise CommandFailed(
            "--select and --rank answer different questions",
            hint="smithers approvals --json shows which is required",
            exit_code=Exit.USAGE,
        )
    told = _told(text, iteration) | {"decided_by": _name(by)}
    ranked = None if rank is None else _read_ranking(rank)
    with o.open_client(server, token) as client, _explained(run, server):
        client.approve(run, node, selected=select, ranked=ranked, **told)
    note(f"{node} of run {run}: approved")


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
    """Deny; the workflow says what that does to the run."""
    told = _told(text, iteration) | {"decided_by": _name(by)}
    with o.open_client(server, token) as client, _explained(run, server):
        client.deny(run, node, **told)
    note(f"{node} of run {run}: denied")


def answer(
    run: o.RunArgument,
    node: NodeArgument,
    *,
    value: Annotated[
        str,
        typer.Option(
            "--value",
            metavar="JSON",
            help="The form's value: JSON, @FILE, or @- for stdin.",
            show_default=False,
        ),
    ],
    iteration: Iteration = 0,
    by: By = None,
    server: o.ServerUrl = None,
    token: o.Token = None,
) -> None:
    """Fill in a form; the run then resumes by itself."""
    filled_in = read_json("--value", value, example='"yes"')
    with o.open_client(server, token) as client, _explained(run, server):
        client.answer(run, node, filled_in, answered_by=_name(by), iteration=iteration)
    note(f"{node} of run {run}: answered")


def _read_ranking(text: str) -> list[str]:
    if not text.startswith("["):
        return text.split(",")
    options: list[str] = read_json("--rank", text, example='["red, dry", "white"]')
    return options


def _told(text: str | None, iteration: int) -> dict[str, Any]:
    return {"note": text, "iteration": iteration}


def _name(by: str | None) -> str | None:
    return by or os.environ.get("USER")


@contextmanager
def _explained(run: str, server: str | None) -> Iterator[None]:
    from smithers.client import Conflict

    try:
        yield
    except Conflict as error:
        raise CommandFailed(
            str(error),
            hint=f"{o.at_server(command_line('inspect', run), server)} shows its state",
            exit_code=Exit.FAILED,
        ) from error
