"""`python -m bench.history [--write]`: the medians of all full measurements in bench/results, for bench/results/README.md."""

import json
import sys
from pathlib import Path
from typing import Any

from bench.report import GOALS, RESULTS_DIR, Goal

PAGE = RESULTS_DIR / "README.md"
BEGIN, END = "<!-- history -->\n", "<!-- end of history -->"


def read_results(folder: Path = RESULTS_DIR) -> list[tuple[str, dict[str, Any]]]:
    """Return each one's commit, day and medians, oldest first; neither quick ones nor those of a dirty tree."""
    found = []
    for path in sorted(folder.glob("*.json")):
        document = json.loads(path.read_text())
        is_whole = "medians" in document and not document["is_quick"]
        if is_whole and "dirty" not in document["commit"]:
            day = "-".join(path.name.split("-")[1:3])
            found.append((f"{document['commit'][:7]}, {day}", document["medians"]))
    return found


def table(results: list[tuple[str, dict[str, Any]]]) -> str:
    """Return the table: a row for each figure, a column for each measurement."""
    titles = " | ".join(title for title, _ in results)
    lines = [f"| | | goal | {titles} |", "|---" * (3 + len(results)) + "|"]
    for goal in GOALS:
        values = [medians.get(goal.workload, {}).get(goal.key) for _, medians in results]
        if any(value is not None for value in values):
            cells = " | ".join(_cell(goal, value) for value in values)
            lines.append(f"| {goal.workload} | {goal.meaning} | {_limit(goal)} | {cells} |")
    return "\n".join(lines) + "\n"


def _cell(goal: Goal, value: float | None) -> str:
    if value is None:
        return ""
    figure = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    return f"**{figure}**" if goal.verdict(value).endswith("reached") else figure


def _limit(goal: Goal) -> str:
    return "" if goal.limit is None else f"{'≥' if goal.is_floor else '≤'} {goal.limit:,g}"


def main() -> None:
    made = table(read_results())
    print(made, end="")
    if "--write" in sys.argv:
        page = PAGE.read_text(encoding="utf-8")
        before, rest = page.split(BEGIN)
        PAGE.write_text(before + BEGIN + made + END + rest.split(END)[1], encoding="utf-8")


if __name__ == "__main__":
    main()
