"""`python -m chaos [--minutes N] [--seed S] [--faults NAME,NAME]`: random load and faults, then the checker's verdict."""

import argparse
import asyncio
import sys
import time
from pathlib import Path

from chaos.nemesis import FAULT_NAMES
from chaos.trial import Options, run_trial


def parse() -> Options:
    """Read the options; whatever is not given is printed, so that it can be."""
    parser = argparse.ArgumentParser(prog="python -m chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0, help="how long to load and hurt")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--lanes", type=int, default=16, help="lives at once")
    parser.add_argument("--pause", type=float, default=1.0, help="between lives and faults, in s")
    parser.add_argument("--faults", default=",".join(FAULT_NAMES), help="only these")
    parser.add_argument("--keep", type=Path, help="where to copy history, rows, ledger and log")
    given = parser.parse_args()
    faults = [name for name in given.faults.split(",") if name]
    unknown = sorted(set(faults) - set(FAULT_NAMES))
    if unknown:
        parser.error(f"no such fault: {', '.join(unknown)}; there are {', '.join(FAULT_NAMES)}")
    return Options(
        seconds=given.minutes * 60,
        seed=given.seed,
        lanes=given.lanes,
        pause_s=given.pause,
        faults=faults,
        keep=given.keep,
    )


def main() -> None:
    """Run one trial; exit with 1 where a promise was broken."""
    options = parse()
    print(f"to repeat this: {options.command}", flush=True)
    verdict = asyncio.run(run_trial(options))
    print(verdict, flush=True)
    sys.exit(0 if verdict.is_sound else 1)


if __name__ == "__main__":
    main()
