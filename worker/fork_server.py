"""The fork server that children are forked from: it has loaded everything that a child needs and done nothing else.

A fork of it takes milliseconds where a new interpreter takes half a second, and shares its memory. Forking is sound
only there: that process has one thread, no event loop, no connection, and never loads workflow code. It
begins to load as soon as it is opened, concurrently with its opener.
"""

import multiprocessing
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from typing import Final

PRELOADED: Final = "worker.preloaded"


def open_fork_server() -> ForkServerContext:
    """Start the fork server of this process; it ends with this process, and its forks with it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([PRELOADED])
    forkserver.ensure_running()
    return context
