"""Limit the time of builders and models: an alarm in the main thread, which interrupts code that never returns.

It does not reach code stuck in C; the parent notices that its child is silent. An alarm at
any other time, set by some body, does nothing.
"""

# What `signal` wraps: its signal tries an enum first, which raises for each function.
import _signal  # type: ignore[import-not-found]  # typeshed leaves it out
import os
import signal
from typing import Any, Final

from smithers.engine.rendering import Build, Guard
from worker.forks import end_fork

_AGAIN_S: Final = 0.1  # code that swallows the first alarm gets another


class _RenderTimeout(BaseException):
    """The time is up. A BaseException, so that the author's own `except Exception` does not catch it."""


def install_alarm() -> None:
    """Make SIGALRM harmless outside a render; call once, in the main thread."""
    signal.signal(signal.SIGALRM, _ignore)


def render_guard(timeout_s: float) -> Guard:
    """Return a caller of authors' functions that raises TimeoutError after this time; for the main thread."""

    def guard(build: Build) -> Any:
        pid = os.getpid()
        try:
            # Each time: a body may have replaced it.
            _signal.signal(signal.SIGALRM, _ring)
            signal.setitimer(signal.ITIMER_REAL, timeout_s, _AGAIN_S)
            try:
                return build()
            finally:
                _silence()
        except _RenderTimeout:
            text = f"took longer than {timeout_s:g} s: work belongs into tasks"
            raise TimeoutError(text) from None
        finally:
            end_fork(pid)

    return guard


def _silence() -> None:
    while True:
        try:
            _signal.signal(signal.SIGALRM, _ignore)
            signal.setitimer(signal.ITIMER_REAL, 0)
        except _RenderTimeout:  # it fired while it was being removed
            continue
        return


def _ring(_signal: int, _frame: object) -> None:
    raise _RenderTimeout


def _ignore(_signal: int, _frame: object) -> None:
    # Not SIG_IGN: a body's programs would inherit that, which breaks `timeout`.
    pass
