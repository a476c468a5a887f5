"""`smithers graph` with builders that misbehave; without a server."""

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


def graph(place: Path, source: str, *flags: str) -> subprocess.CompletedProcess[str]:
    (place / "flow.py").write_text(source, encoding="utf-8")
    return run_command("graph", "flow.py", "--root-dir", str(place), *flags, cwd=place)


def test_a_builder_that_does_not_return_is_ended_after_the_time_of_a_render(tmp_path: Path) -> None:
    drawn = graph(tmp_path, HANGS)
    assert (drawn.returncode, drawn.stdout) == (1, "")
    assert "took longer than 0.1 s" in drawn.stderr
