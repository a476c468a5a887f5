"""One trial: a site, clients and a nemesis for a while; then all is healed, everything must end, and the checker judges."""

import asyncio
import random
import shutil
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from chaos.checker import History, Runs, Violation, check, read_ledger
from chaos.dump import read_runs, write_runs
from chaos.load import Clients, load
from chaos.nemesis import Nemesis
from chaos.recorder import Recorder
from chaos.site import Site

END_LIMIT_S = (
    180.0  # after the last fault was healed; the checker holds the runs themselves to less
)
MAX_SHOWN = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What repeats a trial, as far as chance goes: what is scheduled is repeated, not how the machine interleaves it."""

    seconds: float
    seed: int
    lanes: int
    pause_s: float
    faults: list[str]
    keep: Path | None = None

    @property
    def command(self) -> str:
        """The command line of this trial."""
        return (
            f"python -m chaos --minutes {self.seconds / 60:g} --seed {self.seed} --lanes {self.lanes}"
            f" --pause {self.pause_s:g} --faults {','.join(self.faults)}"
        )


@dataclass(kw_only=True)
class Verdict:
    """What was done and what was found."""

    options: Options
    figures: dict[str, int | float] = field(default_factory=dict)
    faults: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    violations: list[Violation] = field(default_factory=list)
    is_over: bool = True  # every client came to an end

    @property
    def is_sound(self) -> bool:
        """No promise was broken, and something was tried."""
        return not self.violations and self.is_over and self.figures["runs accepted"] > 0

    def __str__(self) -> str:
        lines = [f"{name:<44}{value:>12,.6g}" for name, value in self.figures.items()]
        lines += [f"{'runs ' + name:<44}{count:>12,}" for name, count in self.statuses.items()]
        lines += [f"{'fault ' + name:<44}{count:>12,}" for name, count in self.faults.items()]
        if not self.is_over:
            lines.append(
                f"some client had not come to an end {END_LIMIT_S:g} s after the last fault"
            )
        lines += [str(violation) for violation in self.violations[:MAX_SHOWN]]
        if self.is_sound:
            lines.append("SOUND: no promise was broken")
        else:
            broken = ", ".join(
                f"{promise}: {count}"
                for promise, count in Counter(one.promise for one in self.violations).items()
            )
            lines.append(f"BROKEN: {broken or 'no end'}; to repeat: {self.options.command}")
        return "\n".join(lines)


async def run_trial(options: Options, *, trees: dict[str, Path] | None = None) -> Verdict:
    """Run a trial; the site is removed when its verdict is sound or its files were kept elsewhere.

    `trees`: parts, such as `pool-1`, that run another version's code.
    """
    site = Site(trees=trees)
    history_path = site.place / "history.jsonl"
    verdict = Verdict(options=options)
    try:
        with Recorder(history_path) as recorder:
            async with site:
                runs = await _play(site, recorder, options, verdict)
        ledger = read_ledger(site.ledger_path)
        history = History.read(history_path)
        verdict.violations = await asyncio.to_thread(check, history, runs, ledger)
        verdict.figures |= figures(history, runs, ledger)
        verdict.statuses = Counter(run.status for run in runs.values())
        if options.keep is not None or not verdict.is_sound:
            _keep(site, runs, options.keep or Path.cwd() / f"chaos-{options.seed}")
    finally:
        site.remove()
    return verdict


async def _play(site: Site, recorder: Recorder, options: Options, verdict: Verdict) -> Runs:
    is_over = asyncio.Event()
    nemesis = Nemesis(site, recorder, random.Random(f"nemesis/{options.seed}"))
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    began_at = time.monotonic()
    async with aiohttp.ClientSession(connector=connector, read_bufsize=2**16) as http:
        clients = Clients(http=http, urls=[site.url(0), site.url(1)], recorder=recorder)
        living = asyncio.create_task(
            load(
                clients,
                seed=str(options.seed),
                lanes=options.lanes,
                is_over=is_over,
                pause_s=options.pause_s,
            )
        )
        hurting = asyncio.create_task(
            nemesis.hurt(options.faults, pause_s=options.pause_s, is_over=is_over)
        )
        try:
            # Whichever breaks first ends the trial: a nemesis that cannot do its work proves nothing.
            await asyncio.wait(
                [living, hurting], timeout=options.seconds, return_when=asyncio.FIRST_EXCEPTION
            )
            is_over.set()
            await hurting
            healed_at = time.monotonic()
            _, late = await asyncio.wait([living], timeout=END_LIMIT_S)
        finally:
            hurting.cancel()
            living.cancel()
            await asyncio.wait([living, hurting])
    verdict.is_over = not late
    if not late:
        verdict.figures["lives"] = living.result()
    verdict.figures["seconds of load and faults"] = round(healed_at - began_at)
    verdict.figures["seconds until all had ended"] = round(time.monotonic() - healed_at, 1)
    verdict.figures["processes killed"] = nemesis.kill_count
    verdict.figures["faults"] = sum(nemesis.counts.values())
    verdict.faults = nemesis.counts
    connection = await site.connect()
    try:
        return await read_runs(connection)
    finally:
        await connection.close()


def figures(history: History, runs: Runs, ledger: list[dict[str, Any]]) -> dict[str, int | float]:
    """Count what was tried, so that a verdict says how much it is worth."""
    accepted = {start.run for start in history.of("start") if start.is_ok}
    phases = Counter(operation.phase for operation in history.operations)
    ends = Counter(stream["end"] for stream in history.streams)
    types = Counter(event.type for run in runs.values() for event in run.events)
    return {
        "runs accepted": len(accepted),
        "runs accepted and lost": len(accepted - set(runs)),
        "requests answered 2xx": phases["ok"],
        "requests refused": phases["refused"],
        "requests with an unknown outcome, asked again": phases["unknown"],
        "streams": len(history.streams),
        "streams cut by their reader": ends["cut"],
        "streams broken": ends["broken"],
        "events stored": sum(types.values()),
        "events delivered": sum(len(stream["seqs"]) for stream in history.streams),
        "approvals decided": types["ApprovalGranted"] + types["ApprovalDenied"],
        "signals received": types["SignalReceived"],
        "cancels": types["RunCancelled"],
        "resumes": sum(run.era for run in runs.values()),
        "takeovers": types["RunAutoResumed"],
        "runs claimed more than once": sum(
            max((event.epoch for event in run.events), default=0) > 1 for run in runs.values()
        ),
        "bodies begun": sum(line["what"] == "begin" for line in ledger),
    }


def _keep(site: Site, runs: Runs, place: Path) -> None:
    place.mkdir(parents=True, exist_ok=True)
    for path in (site.place / "history.jsonl", site.ledger_path, site.log_path):
        if path.exists():
            shutil.copy(path, place)
    write_runs(runs, place / "runs.jsonl")
    print(f"history, rows, ledger and log are in {place}", flush=True)
