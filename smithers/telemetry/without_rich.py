"""Load structlog without rich: importing this module before structlog is all there is to do.

If rich is installed, as the command line needs it, structlog loads it to print tracebacks in colour, which no log of ours
has. It would be a fifth of what a process loads at its start, and some megabytes.
"""

import sys

if "rich" not in sys.modules:
    sys.modules["rich"] = None  # type: ignore[assignment]  # importing it fails, as if it were not installed
    try:
        import structlog  # noqa: F401 - loaded, and kept by sys.modules
    finally:
        del sys.modules["rich"]
