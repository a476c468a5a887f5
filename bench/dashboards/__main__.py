"""Draw the dashboards of deploy/grafana from a real Prometheus' data: `python -m bench.dashboards [--seconds 120] [--write]`.

A server works under a load, a Prometheus scrapes it, and every query of every panel is asked over Prometheus' API, as Grafana
asks it. `--write` puts pictures into docs/pictures, by a headless Chromium. No data that nothing explains is an error.
"""

import argparse
import asyncio
import json
import math
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench.dashboards.drawing import PAGE_WIDTH, Line, Picture, page, page_height
from bench.dashboards.fleet import Prometheus, exercise, scratch, serving, watching
from bench.server import ROOT_DIR

BOARDS = sorted((ROOT_DIR / "deploy" / "grafana" / "dashboards").glob("*.json"))
PICTURES = ROOT_DIR / "docs" / "pictures"
RATE_INTERVAL = "10s"  # what Grafana makes of a scrape each second, and a little
STEP_S = 1
REST_S = 6.0  # a last scrape, and what is read from the database every five seconds
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--hide-scrollbars",
    "--disable-dev-shm-usage",
)
NO_COLLECTOR = "the collector reads it from Postgres, and there is none here"
# Why a panel may have nothing to show.
EXPLAINED = {
    "Connections": NO_COLLECTOR,
    "Transactions of the server": NO_COLLECTOR,
    "Size": NO_COLLECTOR,
    "Rows": NO_COLLECTOR,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.dashboards", description=__doc__)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--write", action="store_true", help="make docs/pictures anew")
    chosen = parser.parse_args()
    with scratch() as folder, serving(folder) as (url, pid), watching(url, folder) as prometheus:
        began = time.time()
        asyncio.run(exercise(url, pid, chosen.seconds))
        time.sleep(REST_S)
        ended = time.time()
        boards = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in BOARDS}
        drawn = {
            name: [picture(prometheus, panel, began, ended) for panel in board["panels"]]
            for name, board in boards.items()
        }
    for name, pictures in drawn.items():
        for one in pictures:
            print(
                f"{name:10} {one.title:50} {len(one.lines):3} {one.note if not one.lines else ''}"
            )
    if unexplained := [
        f"{name}: {one.title}"
        for name, pictures in drawn.items()
        for one in pictures
        if not one.lines and not one.note
    ]:
        sys.exit(f"no data, and nobody knows why: {', '.join(unexplained)}")
    if chosen.write:
        with scratch() as folder:
            for name, pictures in drawn.items():
                text = page(boards[name]["title"], pictures, began, ended)
                photograph(text, len(pictures), folder, PICTURES / f"{name}.png")


def picture(prometheus: Prometheus, panel: dict[str, Any], began: float, ended: float) -> Picture:
    """Ask a panel's queries."""
    lines = [line for target in panel["targets"] for line in ask(prometheus, target, began, ended)]
    lines.sort(key=lambda line: -sum(value for _, value in line.points))
    unit = panel["fieldConfig"]["defaults"].get("unit", "short")
    return Picture(panel["title"], unit, lines, EXPLAINED.get(panel["title"], ""))


def ask(prometheus: Prometheus, target: dict[str, Any], began: float, ended: float) -> list[Line]:
    """Ask one query; raises SystemExit where Prometheus does not know what it means."""
    found = prometheus.ask(
        "query_range",
        query=target["expr"].replace("$__rate_interval", RATE_INTERVAL),
        start=f"{began:.0f}",
        end=f"{ended:.0f}",
        step=str(STEP_S),
    )
    if found is None:
        sys.exit(f"Prometheus refuses {target['expr']}")
    lines = []
    for series in found:
        points = [
            (at, value) for at, text in series["values"] if math.isfinite(value := float(text))
        ]
        if points:
            lines.append(Line(name_of(target["legendFormat"], series["metric"]), points))
    return lines


def name_of(template: str, labels: dict[str, str]) -> str:
    """Fill a legend's template."""
    return re.sub(r"{{\s*(\w+)\s*}}", lambda found: labels.get(found[1], ""), template)


def photograph(text: str, panel_count: int, folder: Path, file: Path) -> None:
    """Have a page drawn into a file."""
    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("needs Debian's chromium")
    source = folder / "page.html"
    source.write_text(text, encoding="utf-8")
    file.parent.mkdir(exist_ok=True)
    size = f"--window-size={PAGE_WIDTH},{page_height(panel_count)}"
    places = (f"--user-data-dir={folder / 'chromium'}", f"--screenshot={file}", source.as_uri())
    subprocess.run([chromium, *FLAGS, size, *places], check=True, capture_output=True, timeout=60)
    print(f"{file.relative_to(ROOT_DIR)}: {file.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
