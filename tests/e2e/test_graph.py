"""`smithers graph`, for builders that do not return and files that print; without a server."""

import json
import subprocess
from pathlib import Path

from tests.support.serving import run_command

HANGS = """
from smithers import workflow

@workflow(render_timeout=0.1)
def hangs(ctx):
    while True:
        pass
"""
PRINTS = """
from smithers import Task, workflow

print("imported")

@workflow
def prints(ctx):
    print("built")
    return Task("a", 1)
"""


def graph(place: Path, source: str, *flags: str) -> subprocess.CompletedProcess[str]:
    (place / "flow.py").write_text(source, encoding="utf-8")
    return run_command("graph", "flow.py", "--root-dir", str(place), *flags, cwd=place)


def test_a_builder_that_does_not_return_is_ended_after_the_time_of_a_render(tmp_path: Path) -> None:
    drawn = graph(tmp_path, HANGS)
    assert (drawn.returncode, drawn.stdout) == (1, "")
    assert "took longer than 0.1 s" in drawn.stderr


def test_what_a_workflow_prints_goes_to_stderr(tmp_path: Path) -> None:
    shown = graph(tmp_path, PRINTS, "--json")
    assert json.loads(shown.stdout)["tag"] == "smithers:workflow"
    assert shown.stderr.split() == ["imported", "built"]
    drawn = graph(tmp_path, PRINTS)
    assert (drawn.stdout.split()[0], drawn.stderr.split()) == ("flow.py", ["imported", "built"])
