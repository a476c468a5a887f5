"""`make demo`: what it shows, how it ends, and that nothing of it is left."""

import re
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

from tests.support.serving import MARK, TREE, clean_environment, until_none


def test_the_demo_runs_to_its_end_and_leaves_nothing() -> None:
    mark = uuid4().hex
    result = subprocess.run(
        [sys.executable, "-m", "examples.demo"],
        capture_output=True,
        check=False,
        cwd=TREE,
        env=clean_environment(**{"YES": "1", MARK: mark}),
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=100,
    )
    assert result.returncode == 0, result.stderr
    assert "read-history finished" in result.stderr
    assert "statistics in-progress, attempt 2" in result.stderr
    assert "Approved by itself" in result.stdout
    assert re.search(r"the result: \d+ commits? of .+ in \d+ sections?", result.stdout)
    assert f"{result.stdout.count('# ')}" != "0"
    data_dir = re.search(r"PostgreSQL in (\S+)", result.stdout)
    assert data_dir is not None
    assert not Path(data_dir[1]).exists()
    until_none(mark)
    until_none(data_dir[1])
    assert "Traceback" not in result.stderr
