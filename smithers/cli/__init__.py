"""The `smithers` command."""

import sys


def command() -> None:
    """Run the command of this process; Ctrl-C ends it silently, even while its modules load."""
    try:
        from smithers.cli.main import main

        main()
    except KeyboardInterrupt:
        sys.exit(130)
