"""The client for synchronous code."""

import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from typing import Any, Self

import httpx2

from smithers.client import calls, streaming
from smithers.client.calls import Answer, Call, Item
from smithers.client.errors import ServerFailed
from smithers.client.wire import (
    Approval,
    Event,
    Frame,
    Node,
    Run,
    RunSummary,
    SignalRecord,
    StreamToken,
    Why,
    WorkflowSummary,
)


class Client:
    """A client of one server; close it, or use it as a context manager."""

    def __init__(self, url: str, *, token: str | None = None, timeout_s: float = 30.0) -> None:
        self.url = url
        self._http = httpx2.Client(
            base_url=url,
            headers=calls.headers_for(token),
            timeout=timeout_s,
            limits=calls.LIMITS,
            trust_env=not calls.is_loopback(url),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def start(
        self,
        workflow_path: str,
        input: Mapping[str, Any] | None = None,
        *,
        run_id: str | None = None,
        max_concurrency: int | None = None,
        priority: int | None = None,
        budget: Mapping[str, float] | None = None,
        idempotency_key: str | None = None,
    ) -> str:
        """Start a run and return its id; with an idempotency key a repeated call starts only one."""
        return self._send(
            calls.start(
                workflow_path,
                input,
                run_id=run_id,
                max_concurrency=max_concurrency,
                priority=priority,
                budget=budget,
                idempotency_key=idempotency_key,
            )
        )

    def resume(self, run_id: str, *, workflow_path: str | None = None) -> str:
        """Resume a failed or cancelled run; with a path, using the file as it is now."""
        return self._send(calls.resume(run_id, workflow_path=workflow_path))

    def cancel(self, run_id: str) -> str:
        """Cancel a run; running attempts are stopped."""
        return self._send(calls.cancel(run_id))

    def get(self, run_id: str) -> Run:
        """Read a run."""
        return self._send(calls.get(run_id))

    def why(self, run_id: str) -> Why:
        """Return why a run does not progress."""
        return self._send(calls.why(run_id))

    def list_runs(
        self, *, status: str | None = None, workflow: str | None = None, limit: int | None = None
    ) -> list[RunSummary]:
        """List the newest runs, newest first: at most `limit` of them, by default 50."""
        return self._send(calls.list_runs(status=status, workflow=workflow, limit=limit))

    def list_nodes(self, run_id: str) -> list[Node]:
        """List all of a run's nodes, oldest first."""
        return self._send_all(calls.list_nodes(run_id))

    def get_node(self, run_id: str, node_id: str, *, iteration: int | None = None) -> Node:
        """Read a node; by default in its newest iteration."""
        return self._send(calls.get_node(run_id, node_id, iteration=iteration))

    def list_frames(
        self, run_id: str, *, limit: int | None = None, order: str = "desc"
    ) -> list[Frame]:
        """List one page of a run's frames, at most `limit` (default 50): the newest first, with `order="asc"` the oldest."""
        return self._send(calls.list_frames(run_id, limit=limit, order=order))

    def list_workflows(self) -> list[WorkflowSummary]:
        """List all workflows with runs, by name."""
        return self._send_all(calls.list_workflows())

    def list_approvals(self) -> list[Approval]:
        """List all open questions to people, oldest first."""
        return self._send_all(calls.list_approvals())

    def approve(
        self,
        run_id: str,
        node_id: str,
        *,
        selected: str | None = None,
        ranked: Sequence[str] | None = None,
        note: str | None = None,
        decided_by: str | None = None,
        iteration: int | None = None,
    ) -> str:
        """Approve a node; `selected`, `ranked`: if it asks for a choice."""
        return self._send(
            calls.decide(
                run_id,
                node_id,
                is_approved=True,
                note=note,
                decided_by=decided_by,
                iteration=iteration,
                decision=calls.choice(selected, ranked),
            )
        )

    def answer(
        self,
        run_id: str,
        node_id: str,
        value: Any,
        *,
        answered_by: str | None = None,
        iteration: int | None = None,
    ) -> str:
        """Fill in a form; raises BadRequest, with the places in its `details`, for a value that does not fit."""
        return self._send(
            calls.answer(run_id, node_id, value, answered_by=answered_by, iteration=iteration)
        )

    def deny(
        self,
        run_id: str,
        node_id: str,
        *,
        note: str | None = None,
        decided_by: str | None = None,
        iteration: int | None = None,
    ) -> str:
        """Deny a node."""
        return self._send(
            calls.decide(
                run_id,
                node_id,
                is_approved=False,
                note=note,
                decided_by=decided_by,
                iteration=iteration,
            )
        )

    def signal(
        self,
        run_id: str,
        signal_name: str,
        data: Any = {},  # noqa: B006 - handed on as it is
        *,
        correlation_id: str | None = None,
        signal_id: str | None = None,
    ) -> SignalRecord:
        """Send a signal with any JSON value; with an id a repeated call sends only one."""
        return self._send(
            calls.signal(
                run_id, signal_name, data, correlation_id=correlation_id, signal_id=signal_id
            )
        )

    def stream_token(self, run_id: str) -> StreamToken:
        """Create a token that opens a run's event stream in a browser, for a few minutes."""
        return self._send(calls.stream_token(run_id))

    def is_ready(self) -> bool:
        """Say whether the server takes requests; raises ServerUnreachable if there is none."""
        try:
            return self._send(calls.ready())
        except ServerFailed:
            return False

    def wait(self, run_id: str) -> Run:
        """Follow a run to its end and return it."""
        for _ in self.stream(run_id):
            pass
        return self.get(run_id)

    def stream(self, run_id: str, *, after_seq: int = -1) -> Generator[Event]:
        """Yield a run's events, each once, in order, until it has ended; an interrupted stream is resumed."""
        place = streaming.Resumption(after_seq)
        while True:
            cut: Exception | None = None
            try:
                with closing(self._connect(run_id, place)) as events:
                    yield from events
            except httpx2.SSEError as error:
                raise streaming.unreadable(error) from error
            except (httpx2.TransportError, ServerFailed) as error:
                cut = error
            if place.is_over:
                return
            time.sleep(place.pause_s(cut))

    def list_events(self, run_id: str, *, after_seq: int = -1) -> Generator[Event]:
        """Yield the events stored so far, and return; raises UnexpectedAnswer if the server does not send them all."""
        last_seq = self.get(run_id).last_seq
        if after_seq >= last_seq:
            return
        with closing(self.stream(run_id, after_seq=after_seq)) as events:
            for event in events:
                yield event
                after_seq = event.seq
                if after_seq >= last_seq:
                    return
        raise streaming.ended_early(run_id, after_seq, last_seq)

    def _connect(self, run_id: str, place: streaming.Resumption) -> Generator[Event]:
        """Yield the events of one connection, and record the position in `place`."""
        with self._http.sse(
            calls.events_path(run_id),
            params={"afterSeq": place.seq},
            timeout=httpx2.Timeout(10.0, read=streaming.SILENCE_S),
            max_event_size=streaming.MAX_EVENT_BYTES,
        ) as source:
            response = source.response
            if response.status_code == 204:
                place.end()
                return
            if not response.is_success:
                content = response.read()
                raise calls.read_refusal(response.status_code, content)
            place.connected(response.headers.get("Content-Type", ""))
            for sent in source:
                if sent.data:
                    event = calls.read_event(sent.id, sent.data)
                    place.take(event)
                    yield event

    def _send(self, call: Call[Answer]) -> Answer:
        response = self._request(call, call.path)
        return calls.read_answer(call, response.content, self.url)

    def _send_all(self, call: Call[list[Item]]) -> list[Item]:
        """Fetch all pages of a list."""
        items: list[Item] = []
        url: str | None = call.path
        while url is not None:
            response = self._request(call, url)
            page: list[Item] = calls.read_answer(call, response.content, self.url)
            items += page
            url = response.links.get("next", {}).get("url")
        return items

    def _request(self, call: Call[Any], url: str) -> httpx2.Response:
        try:
            response = self._http.request(**call.request_args(url))
        except httpx2.TransportError as error:
            raise calls.unreachable(self.url, error) from error
        if not response.is_success:
            raise calls.read_refusal(response.status_code, response.content)
        return response
