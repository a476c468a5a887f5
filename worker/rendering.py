"""Bound the time of a render: an alarm in the main thread, which a builder that never returns cannot miss.

A builder that is stuck in C code is not reached by it; the parent notices that its child no longer beats.
"""

import signal
from collections.abc import Callable
from typing import Any, Final

from smithers.engine.rendering import Guard
from smithers.errors import RenderFailed

_AGAIN_S: Final = 0.1  # a builder that swallows the first alarm gets another


class _RenderTimeout(BaseException):
    """The builder's time is up; no `except Exception` of its stops this."""


def install_alarm() -> None:
    """Make SIGALRM end the render that is under way; call once, in the main thread."""

    def ring(_signal: int, _frame: object) -> None:
        raise _RenderTimeout

    signal.signal(signal.SIGALRM, ring)


def render_guard(timeout_s: float) -> Guard:
    """Return what calls a builder and raises RenderFailed when it takes longer; for the main thread."""

    def guard(build: Callable[[], Any]) -> Any:
        try:
            signal.setitimer(signal.ITIMER_REAL, timeout_s, _AGAIN_S)
            try:
                return build()
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        except _RenderTimeout:
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise RenderFailed(
                f"the builder took longer than {timeout_s:g} s: work belongs into tasks"
            ) from None
        except (SystemExit, KeyboardInterrupt, GeneratorExit) as error:
            raise RenderFailed(f"the builder raised {type(error).__name__}") from error

    return guard
