"""Logs: one line each, a constant event name with fields; JSON for machines, `pretty` for a terminal.

Lines of the standard library's logging (by aiohttp, by a task's `log`) have the same form. If traces are on, a line
of a run or a request has `trace_id` and `span_id`; in a task's body every line has the attempt's ids.
"""

import logging
import sys
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict

from smithers.current import CURRENT
from smithers.telemetry.tracing import find_current
from smithers.texts import printable


def configure_logging(log_format: str, level: str, stream: TextIO | None = None) -> None:
    """Set up this process's logs, by default to stderr; `log_format`: json or pretty."""
    stream = stream or sys.stderr
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        _add_place,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    renderers: list[Any] = (
        [_disarm, structlog.dev.ConsoleRenderer(colors=stream.isatty(), pad_event_to=20)]
        if log_format == "pretty"
        else [structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level]),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    for chatty in ("alembic", "asyncio", "httpx2"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, root.level))


def _add_place(_logger: object, _level: str, line: EventDict) -> EventDict:
    """Add a line's attempt and trace context."""
    task = CURRENT.get(None)
    if task is not None:
        line.setdefault("run_id", task.run_id)
        line.setdefault("node_id", task.node_id)
        line.setdefault("iteration", task.iteration)
        line.setdefault("attempt", task.attempt)
    place = find_current()
    if place is not None:
        line["trace_id"], line["span_id"] = place.trace_id.hex(), place.span_id.hex()
    return line


def _disarm(_logger: object, _level: str, line: EventDict) -> EventDict:
    """Escape control characters in what authors and libraries log, so that they cannot control a terminal."""
    return {
        key: printable(value) if isinstance(value, str) else value for key, value in line.items()
    }
