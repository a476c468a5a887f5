"""Load structlog without rich: importing this module before structlog is all there is to do.

structlog takes rich, where it is installed, to print tracebacks in colour, which no log of ours has. It is a fifth of
what a process loads at its start, and some megabytes of it; the command line brings it along.
"""

import sys

if "rich" not in sys.modules:
    sys.modules["rich"] = None  # type: ignore[assignment]  # an import of it fails, as if it were not there
    try:
        import structlog  # noqa: F401 - loaded, and kept by sys.modules
    finally:
        del sys.modules["rich"]
