"""What all bodies of a child share: threads, tools, a root; and what is done about those that do not stop."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import structlog

from worker.premises import Premises
from worker.threads import NoThread, call_in_thread
from worker.toolboxes import Workshop

EXHAUSTED: Final = 75  # EX_TEMPFAIL: the exit code of a process that can no longer work

LOG: Final = structlog.get_logger(__name__)

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bodies:
    """The environment in which authors' code runs."""

    threads: ThreadPoolExecutor
    workshop: Workshop
    root_dir: Path
    on_abandoned: Callable[[str], None]  # a body could not be stopped: this child must be replaced
    premises: Premises | None = None  # None: the process is not ours to restore

    def attempt(self) -> AbstractContextManager[None]:
        """Count an attempt as running; process state that it changed is restored at its end."""
        return self.premises or nullcontext()

    def hear_error(self, error: BaseException) -> None:
        """Inspect a body's exception: it may be due to exhausted shared resources."""
        if self.premises is not None:
            self.premises.hear_error(error)

    async def call_in_thread(
        self,
        function: Callable[[], Result],
        *,
        where: str,
        on_cancel: Callable[[], None] = lambda: None,
    ) -> Result:
        """Return the result of an author's plain function; one that does not stop after a cancellation is abandoned."""
        try:
            return await call_in_thread(
                self.threads,
                function if self.premises is None else partial(self.premises.call, function),
                on_cancel=on_cancel,
                on_stuck=lambda: self.on_abandoned(f"the thread of {where} does not stop"),
            )
        except NoThread as error:
            if self.premises is None:
                raise
            # Some body has used them up, and no other may fail because of it: all of them resume elsewhere.
            LOG.exception("child_gives_up", error=str(error))
            os._exit(EXHAUSTED)
