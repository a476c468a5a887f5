"""Make the tables of docs/telemetry.md from the code: `python -m docs.telemetry_pages --write`; a test holds them equal.

The table of metrics is made of smithers/telemetry/names.py, the table of log events of the calls in the sources.
"""

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from smithers.telemetry.names import FAMILIES, Kind, Metric

TREE: Final = Path(__file__).resolve().parents[1]
PAGE: Final = TREE / "docs" / "telemetry.md"
PACKAGES: Final = ("gateway", "smithers", "worker")
LEVELS: Final = ("debug", "info", "warning", "error", "exception")
NAME: Final = re.compile(r"[a-z]+(_[a-z]+)*")
NOT_FIELDS: Final = {"exc_info"}

# What Smithers calls the same, as its catalogue of metrics has it.
THEIRS: Final = {
    "smithers_runs_started_total": "smithers.runs.total",
    "smithers_runs_finished_total": "smithers.runs.finished_total",
    "smithers_runs_failed_total": "smithers.runs.failed_total",
    "smithers_runs_cancelled_total": "smithers.runs.cancelled_total",
    "smithers_runs_resumed_total": "smithers.runs.resumed_total",
    "smithers_runs_continued_total": "smithers.runs.continued_total",
    "smithers_run_duration_seconds": "smithers.run.duration_ms",
    "smithers_runs": "smithers.runs.active",
    "smithers_nodes_started_total": "smithers.nodes.started",
    "smithers_nodes_finished_total": "smithers.nodes.finished",
    "smithers_nodes_failed_total": "smithers.nodes.failed",
    "smithers_nodes_retried_total": "smithers.node.retries_total",
    "smithers_nodes_active": "smithers.nodes.active",
    "smithers_node_duration_seconds": "smithers.node.duration_ms",
    "smithers_attempt_duration_seconds": "smithers.attempt.duration_ms",
    "smithers_queue_depth": "smithers.scheduler.queue_depth",
    "smithers_queue_wait_seconds": "smithers.scheduler.wait_duration_ms",
    "smithers_events_emitted_total": "smithers.events.emitted_total",
    "smithers_approvals_requested_total": "smithers.approvals.requested",
    "smithers_approvals_granted_total": "smithers.approvals.granted",
    "smithers_approvals_denied_total": "smithers.approvals.denied",
    "smithers_approvals_pending": "smithers.approval.pending",
    "smithers_approval_wait_seconds": "smithers.approval.wait_duration_ms",
    "smithers_timers_pending": "smithers.timers.pending",
    "smithers_timer_delay_seconds": "smithers.timers.delay_ms",
    "smithers_tool_calls_total": "smithers.tool_calls.total",
    "smithers_tool_call_duration_seconds": "smithers.tool.duration_ms",
    "smithers_tokens_total": "smithers.tokens.input_total, smithers.tokens.output_total",
    "smithers_http_requests_total": "smithers.http.requests",
    "smithers_http_request_duration_seconds": "smithers.http.request_duration_ms",
    "smithers_db_transaction_duration_seconds": "smithers.db.transaction_ms",
    "smithers_signals_received_total": "smithers.gateway.signals_total",
    "smithers_process_uptime_seconds": "smithers.process.uptime_seconds",
    "smithers_process_resident_memory_bytes": "smithers.process.memory_rss_bytes",
}


@dataclass
class LogEvent:
    """A constant event name, and all that is said with it anywhere."""

    levels: set[str] = field(default_factory=set)
    fields: set[str] = field(default_factory=set)
    modules: set[str] = field(default_factory=set)


def metric_rows() -> list[str]:
    """Return the table of metrics."""
    head = ["| family | type | labels | says | in Smithers |", "|---|---|---|---|---|"]
    return head + [_metric_row(metric) for metric in FAMILIES]


def log_rows() -> list[str]:
    """Return the table of log events."""
    head = ["| event | level | fields | where |", "|---|---|---|---|"]
    rows = []
    for name, event in sorted(find_log_events().items()):
        levels = ", ".join(sorted(event.levels, key=LEVELS.index))
        fields = ", ".join(f"`{one}`" for one in sorted(event.fields))
        where = ", ".join(f"`{module}`" for module in sorted(event.modules))
        rows.append(f"| `{name}` | {levels} | {fields} | {where} |")
    return head + rows


def find_log_events() -> dict[str, LogEvent]:
    """Find every log call of the product by its event's name; raises ValueError for a name that is none."""
    found: dict[str, LogEvent] = {}
    for package in PACKAGES:
        for path in sorted((TREE / package).rglob("*.py")):
            module = path.relative_to(TREE).as_posix()
            for level, call in _calls(ast.parse(path.read_text(encoding="utf-8"))):
                for name in _names_of(call, module):
                    event = found.setdefault(name, LogEvent())
                    event.levels |= level
                    event.modules.add(module)
                    event.fields |= {one.arg for one in call.keywords if one.arg} - NOT_FIELDS
    return found


def _calls(tree: ast.Module) -> Iterator[tuple[set[str], ast.Call]]:
    chosen = _chosen_levels(tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        match node.func:
            case ast.Attribute(attr=attr, value=value) if attr in LEVELS and _is_log(value):
                yield {attr}, node
            case ast.Name(id=name) if name in chosen:
                yield chosen[name], node


def _chosen_levels(tree: ast.Module) -> dict[str, set[str]]:
    """Find names that stand for one level or another: `level = log.info if … else log.error`."""
    return {
        node.targets[0].id: {node.value.body.attr, node.value.orelse.attr}
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.IfExp)
        and isinstance(node.value.body, ast.Attribute)
        and isinstance(node.value.orelse, ast.Attribute)
        and _is_log(node.value.body.value)
    }


def _is_log(value: ast.expr) -> bool:
    match value:
        case ast.Name(id="log" | "LOG"):
            return True
        case ast.Call(func=ast.Attribute(attr="get_logger")):
            return True
        case _:
            return False


def _names_of(call: ast.Call, module: str) -> list[str]:
    match call.args:
        case [ast.IfExp(body=body, orelse=orelse)]:
            given = [body, orelse]
        case given:
            pass
    names = [one.value for one in given if isinstance(one, ast.Constant)]
    if names and len(names) == len(given) and all(NAME.fullmatch(str(name)) for name in names):
        return [str(name) for name in names]
    raise ValueError(f"{module}:{call.lineno}: a log event is a constant name with fields")


def _metric_row(metric: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    kind = metric.kind.value
    if metric.kind is Kind.HISTOGRAM:
        kind += f", {metric.buckets[0]:g} … {metric.buckets[-1]:g}"
    theirs = ", ".join(f"`{name}`" for name in THEIRS.get(metric.name, "").split(", ") if name)
    return f"| `{metric.name}` | {kind} | {labels} | {metric.help} | {theirs} |"


def fill(page: str) -> str:
    """Return the page with its tables made anew."""
    for name, rows in (("metrics", metric_rows()), ("logs", log_rows())):
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        before, rest = page.split(begin)
        page = before + begin + "\n".join(rows) + "\n" + end + rest.split(end)[1]
    return page


def main() -> None:
    """Write the page, or say whether it is as it should be."""
    page = PAGE.read_text(encoding="utf-8")
    if "--write" in sys.argv:
        PAGE.write_text(fill(page), encoding="utf-8")
    elif fill(page) != page:
        raise SystemExit("docs/telemetry.md is old: python -m docs.telemetry_pages --write")


if __name__ == "__main__":
    main()
