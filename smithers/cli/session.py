"""One run at the terminal, from its start to the command's exit code.

Everything that the run needs is in this process and its children: a gateway on a free loopback port with a secret token,
and a pool that claims only this run's queue. Others can see and control the run only if it is served.
"""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from smithers.cli.approvals import iteration_flags
from smithers.cli.console import (
    CommandFailed,
    Exit,
    heeded_signals,
    in_full,
    log_to_stderr,
    note,
    print_json,
)
from smithers.cli.errand import Errand, ServePlace
from smithers.ids import RunId
from smithers.settings import ServerOptions
from smithers.states import RunStatus
from smithers.texts import command_line

if TYPE_CHECKING:
    from smithers.cli.asking import Answer, Ask
    from smithers.cli.following import Followed
    from smithers.cli.progress import Display
    from smithers.client import Approval, AsyncClient
    from smithers.server import Server

Result = TypeVar("Result")

DRAIN_S: Final = 2.0  # after a stop signal, running work is released after this


def run_errand(
    errand: Errand, options: ServerOptions, announce: Callable[[str], None] | None = None
) -> int:
    """Run it, and return the command's exit code; `announce` gets the URL at which the run is served, once."""
    import uvloop

    log_to_stderr(options)
    return uvloop.run(_run(errand, options, announce))


async def _run(
    errand: Errand, options: ServerOptions, announce: Callable[[str], None] | None
) -> int:
    from smithers.cli.progress import open_display
    from smithers.client import AsyncClient
    from smithers.server import start_server

    with (
        _listening(errand.serve) as listener,
        open_display(f"{Path(errand.file).name}  {errand.run_id}") as display,
    ):
        async with (
            start_server(options, environ=os.environ) as server,
            AsyncClient(server.url, token=options.auth_token) as client,
        ):
            session = _Session(errand, server, client, display)
            with session.signals():
                if errand.is_resume:
                    last = await _find_last(errand, server.dsn, str(options.own_queue))
                    session.go_to(last)
                await session.begin()
                async with _serving(errand, options, server, client, listener) as url:
                    if url is not None:
                        display.say(f"run {errand.run_id} is served at {url}")
                    if url is not None and announce is not None:
                        announce(url)
                    await session.follow()
            display.end()  # before the drain, whose seconds are not the run's
    return session.conclude()


@contextmanager
def _listening(place: ServePlace | None) -> Iterator[socket.socket | None]:
    """Listen before the run begins: the port may be taken."""
    if place is None:
        yield None
        return
    from smithers.listener import bind

    with bind(place.host, place.port) as listener:
        yield listener


@asynccontextmanager
async def _serving(
    errand: Errand,
    options: ServerOptions,
    server: "Server",
    client: "AsyncClient",
    listener: socket.socket | None,
) -> AsyncIterator[str | None]:
    """Serve the run at the requested place, until the block is left; yield the URL."""
    if errand.serve is None or listener is None:
        yield None
        return
    from gateway.run_site import ServeOptions, StoreAddress, WorkflowReference, open_run_site
    from smithers.foundation import database_variables
    from smithers.server import url_of
    from smithers.telemetry.names import Role

    run = await client.get(errand.run_id)
    told = ServeOptions(
        workflow=WorkflowReference(
            path=errand.workflow_path, source_hash=run.workflow_hash or "", name=run.workflow_name
        ),
        store=StoreAddress(
            dsn=server.database.dsn,
            direct_dsn=server.database.direct_dsn,
            own_databases=options.workflow_databases,
            data_dir=options.data_dir,
            variables=database_variables(options),
        ),
        run_id=errand.run_id,
        auth_token=errand.serve.auth_token,
        metrics=errand.serve.metrics,
    )
    page = server.sheet.open_page(Role.GATEWAY)
    async with open_run_site(told, listener, page, drain_timeout_s=DRAIN_S):
        yield url_of(errand.serve.host, listener.getsockname()[1])


async def _find_last(errand: Errand, dsn: str, own_queue: str) -> str:
    """Return the last of the runs that continue the errand's, or that itself.

    Raises CommandFailed for a run that a server began: no worker here would ever claim it.
    """
    from smithers.store.connections import open_connection
    from smithers.store.reads import find_newest, find_queue

    run_id = RunId(errand.run_id)
    async with open_connection(dsn, role="up") as connection:
        queue = await find_queue(connection, run_id)
        last = await find_newest(connection, run_id)
    if queue not in {None, own_queue}:
        raise CommandFailed(
            f"run {errand.run_id} was not started by `smithers up`: it is in the queue {queue}",
            hint=f"smithers resume {errand.run_id}, at a server that serves it",
            exit_code=Exit.USAGE,
        )
    return last


async def _begin(errand: Errand, run_id: str, client: "AsyncClient") -> None:
    from smithers.client import BadRequest, Conflict, NotFound

    try:
        if errand.is_resume:
            await client.resume(run_id, workflow_path=errand.workflow_path)
        else:
            await client.start(errand.workflow_path, errand.input, run_id=run_id)
    except BadRequest as error:
        raise CommandFailed(in_full(error), exit_code=Exit.USAGE) from error
    except NotFound as error:
        hint = "leave --resume out to start it"
        raise CommandFailed(str(error), hint=hint, exit_code=Exit.USAGE) from error
    except Conflict as error:
        hint = errand.command("--resume")
        raise CommandFailed(str(error), hint=hint, exit_code=Exit.USAGE) from error


class _Session:
    """One run at the terminal: its questions, the effect of signals, and its end."""

    def __init__(
        self,
        errand: Errand,
        server: "Server",
        client: "AsyncClient",
        display: "Display",
    ) -> None:
        self._errand = errand
        self._run_id = errand.run_id  # or its continuation
        self._display = display
        self._server = server
        self._client = client
        self._has_begun = asyncio.Event()
        self._interrupted = asyncio.Event()
        self._leaving = asyncio.Event()
        self._exit_code = Exit.OK  # another one if a signal told it to leave
        self._cancelling: asyncio.Task[None] | None = None
        self._left: Followed | None = None

    def go_to(self, run_id: str) -> None:
        """Go on with this run, which continues the present one, or is it."""
        if run_id != self._run_id:
            self._display.say(f"run {self._run_id} continues as {run_id}")
            self._run_id = run_id

    async def begin(self) -> None:
        """Start the run, or resume it."""
        await _begin(self._errand, self._run_id, self._client)
        self._has_begun.set()

    async def follow(self) -> None:
        """Follow the run until it has ended or waits, or a stop signal comes; if it is served, until a stop signal comes."""
        self._left = await _do_until(self._leaving, self._follow_on())
        if self._left is None:
            return
        if self._errand.serve is not None and self._cancelling is None:
            self._display.say(f"run {self._left.run.status}; it stays served until Ctrl-C")
            await self._leaving.wait()

    async def _follow_on(self) -> "Followed":
        """Follow the run, and its continuations."""
        from smithers.cli import following

        while True:
            followed = await following.follow(
                self._client,
                self._run_id,
                self._display,
                self._choose_ask(),
                until_ended=self._errand.serve is not None,
            )
            if followed.successor is None:
                return followed
            self.go_to(followed.successor)

    def _choose_ask(self) -> "Ask":
        from smithers.cli import asking

        if self._errand.is_yes:
            return asking.approve_all
        if self._errand.serve is not None:
            return asking.leave_open  # decisions come over HTTP
        if sys.stdin.isatty() and sys.stderr.isatty():
            return self._ask_unless_interrupted
        return asking.leave_open

    async def _ask_unless_interrupted(self, approval: "Approval") -> "Answer | None":
        from smithers.cli import asking

        answer = await _do_until(
            self._interrupted, asking.ask_while_open(self._client, approval, self._display.say)
        )
        if self._cancelling is not None:
            await asyncio.wait({self._cancelling})  # before that, the run still waits for a person
        return answer

    def conclude(self) -> int:
        """Report the outcome, and return the exit code."""
        if self._left is None:
            self._say_how_to_go_on("released")
            return self._exit_code
        run = self._left.run
        match run.status:
            case RunStatus.FINISHED:
                print_json(run.output)
                return Exit.OK
            case RunStatus.CANCELLED:
                self._say_how_to_go_on("cancelled")
                return Exit.CANCELLED if self._cancelling is None else Exit.SIGINT
            case RunStatus.FAILED:
                error = run.error or {}
                if "traceback" in error:
                    note(error["traceback"].rstrip())
                raise CommandFailed(
                    f"the run failed: {error.get('name')}: {error.get('message')}",
                    hint=f"fix it, then: {self._command('--resume')}",
                )
            case _:
                self._say_what_unblocks(self._left)
                return Exit.WAITING

    def _say_what_unblocks(self, left: "Followed") -> None:
        if left.questions:
            self._say_who_answers(left.questions)
            return
        for why in left.whys:
            for reason in why.reasons:
                if reason.kind == "signal" and reason.unblock is not None:
                    note(f"run {why.run_id}: {reason.text}")
                    self._say_who_takes_it(reason.unblock["command"])
                    return
        self._say_how_to_go_on(f"run {left.run.run_id} is {left.run.status}")

    def _say_who_answers(self, questions: "tuple[Approval, ...]") -> None:
        for asked in questions:
            if asked.request_mode == "form":
                note(f"run {asked.run_id} waits for a person to fill in a form: {asked.node_id}")
                flags = ["--value", "JSON", *iteration_flags(asked)]
                self._say_who_takes_it(
                    command_line("answer", asked.run_id, asked.node_id, flags=flags)
                )
                return
        first = questions[0]
        is_choice = first.request_mode != "approve"
        note(
            f"run {first.run_id} waits for {'a choice' if is_choice else 'an approval'}: {first.node_id}"
        )
        if is_choice:
            note(
                f"its options are: {', '.join(first.request_options or ())}; --yes takes the first"
            )
        note(
            f"{'choose' if is_choice else 'approve it'} with:\n  {self._command('--resume', '--yes')}"
        )

    def _say_who_takes_it(self, command: str) -> None:
        note("send it through a server on this root and database (`smithers serve`):")
        note(f"  {command}")
        note(f"then go on with:\n  {self._command('--resume')}")

    def _say_how_to_go_on(self, word: str) -> None:
        note(f"{word}; go on with:\n  {self._command('--resume')}")

    def _command(self, *flags: str) -> str:
        return self._errand.command(*flags, run_id=self._run_id)

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Handle signals while the run is followed; later ones hurry the drain."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, self._interrupt)
        leaving = heeded_signals(signal.SIGTERM, signal.SIGHUP)
        for number in leaving:
            loop.add_signal_handler(number, self._leave, Exit.SIGTERM)
        try:
            yield
        finally:
            for number in (signal.SIGINT, *leaving):
                loop.add_signal_handler(number, self._server.hurry)

    def _interrupt(self) -> None:
        if self._cancelling is not None or self._left is not None:
            self._leave(Exit.SIGINT)
            return
        self._display.say("cancelling the run; Ctrl-C again to leave at once")
        self._interrupted.set()
        self._cancelling = asyncio.create_task(self._cancel())

    async def _cancel(self) -> None:
        from smithers.client import ClientError

        await self._has_begun.wait()  # before that, the server has no run
        try:
            await self._client.cancel(self._run_id)
        except ClientError as error:
            self._display.say(f"the run could not be cancelled: {error}")

    def _leave(self, code: Exit) -> None:
        if self._leaving.is_set():
            self._server.hurry()
        else:
            self._exit_code = code
            self._leaving.set()


async def _do_until(event: asyncio.Event, doing: Coroutine[Any, Any, Result]) -> Result | None:
    """Return the result of an awaitable; None: the event came first, and it was cancelled."""
    task, waiting = asyncio.create_task(doing), asyncio.create_task(event.wait())
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if task.done():
        return task.result()
    task.cancel()
    await asyncio.wait({task})
    return None
