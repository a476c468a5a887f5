"""The modules that the fork server loads before its first fork: no thread, no event loop, no workflow code."""

import signal

import smithers.telemetry.without_rich  # noqa: F401 - first
import worker.child
import worker.describing  # noqa: F401 - loaded for the forks
from smithers.collector import settle_collector

# A service manager sends it to the whole group: the pool handles it, and children die with this process.
signal.signal(signal.SIGTERM, signal.SIG_IGN)
settle_collector()  # memory shared by all forks is not traversed, and so not copied, by each
