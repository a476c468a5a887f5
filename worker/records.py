"""Report one claimed run's commits: as metrics, and as spans if traces are on."""

from collections.abc import Mapping
from typing import Final

import structlog

from smithers.engine.facts import NodeFact, NodeKey, Problem
from smithers.engine.turn import Turn
from smithers.store.claims import ClaimedRun
from smithers.telemetry.tracing import RunTrace, Tracer
from smithers.tracebacks import find_place
from worker.meters import ChildMeters

_WAITING: Final = "waiting-"

LOG: Final = structlog.get_logger(__name__)


class RunRecord:
    """One claimed run, for telemetry."""

    def __init__(self, claim: ClaimedRun, meters: ChildMeters, tracer: Tracer | None) -> None:
        self._claim = claim
        self._meters = meters
        self._times = meters.count_claim(claim)
        self.trace: RunTrace | None = None  # where traces are off
        if tracer is not None:
            self.trace = RunTrace(
                tracer, claim.run_id, claim.workflow_name, claim.era, claim.trace_context
            )

    def begin(self) -> None:
        """Make the run the context of this asyncio task's logs and spans."""
        if self.trace is not None:
            self.trace.make_current(self.trace.span)

    def lose(self) -> None:
        """Record that another owner has the run."""
        self._meters.leases_lost.inc()

    def tell(self, turn: Turn, before: Mapping[NodeKey, NodeFact], now_ms: int) -> None:
        """Record a turn that was committed at the database's `now_ms`; `before`: the facts that it replaces."""
        self._meters.count_turn(turn, self._times, now_ms, before)
        if turn.ending is not None and turn.ending.error is not None:
            self._log_failure(turn.ending.error)
        if self.trace is None:
            return
        for key, fact in turn.nodes.items():
            known = before.get(key)
            if known is None or not known.state.is_waiting or fact.state is known.state:
                continue
            if known.started_ms is not None:
                reason = known.state.removeprefix(_WAITING)
                self.trace.tell_wait(*key, reason, began_ms=known.started_ms, ended_ms=now_ms)
        ending = turn.ending
        if ending is not None and ending.status.is_terminal:
            error_type = None if ending.error is None else ending.error.name
            began_ms = self._times.started_ms
            self.trace.tell_run(ending.status, error_type, began_ms=began_ms, ended_ms=now_ms)

    def _log_failure(self, problem: Problem) -> None:
        """Log that the run failed, and where; without its error's text, which may contain inputs."""
        file, line = find_place(problem.traceback or "") or (None, None)
        LOG.info(
            "run_failed",
            run_id=self._claim.run_id,
            workflow=self._claim.workflow_name,
            error=problem.name,
            code=problem.code,
            file=file,
            line=line,
        )
