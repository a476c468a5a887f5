"""`make bench QUICK=1`: each workload works, loses nothing, and is written down. No figure is judged: machines differ."""

import json
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import pytest

from tests.support.serving import MARK, TREE, clean_environment, until_none

FIGURES = {
    "first": "first_post_p50_ms",
    "W1": "p50_ms",
    "W2": "runs_per_s",
    "W3": "ms_per_node_100",
    "W4": "delivered_count",
    "W5": "runs_per_s",
    "W6": "kill_to_finished_s",
}


@pytest.mark.timeout(300)
def test_a_quick_bench_measures_every_workload_and_leaves_nothing(tmp_path: Path) -> None:
    mark = uuid4().hex
    results = tmp_path / "results.json"
    ran = subprocess.run(
        [sys.executable, "-m", "bench", "--quick", "--json", results],
        capture_output=True,
        check=False,
        cwd=TREE,
        env=clean_environment(**{MARK: mark}),
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=280,
    )
    assert ran.returncode == 0, ran.stderr
    written = json.loads(results.read_text())
    assert written["is_quick"]
    assert {"cores", "python", "postgres"} <= written["machine"].keys()
    medians = written["medians"]
    assert {name: medians[name][key] > 0 for name, key in FIGURES.items()} == dict.fromkeys(
        FIGURES, True
    )
    lost = ("nodes_missing", "nodes_finished_twice", "bodies_ended_twice")
    assert [medians["W6"][key] for key in lost] == [0, 0, 0]
    assert "W6    kill -9 of all" in ran.stdout
    until_none(mark)
