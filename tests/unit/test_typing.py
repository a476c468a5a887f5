"""What authors write is known to a type checker: outputs, inputs, trees."""

import subprocess
import sys
from pathlib import Path

import pytest

TREE = Path(__file__).resolve().parents[2]
SNIPPET = TREE / "tests" / "typing" / "outputs.py"


def check(path: Path, cache: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", "pyproject.toml"]
    return subprocess.run(
        [*command, "--cache-dir", str(cache), "--follow-imports", "silent", str(path)],
        cwd=TREE,
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )


@pytest.fixture(scope="module")
def cache() -> Path:
    return TREE / ".mypy_cache" / "snippets"


def test_what_a_builder_asks_for_has_the_type_that_it_names(cache):
    checked = check(SNIPPET, cache)
    assert checked.returncode == 0, checked.stdout


def test_the_check_can_fail(cache, tmp_path):
    wrong = tmp_path / "wrong.py"
    text = SNIPPET.read_text(encoding="utf-8")
    wrong.write_text(
        text.replace("Article), Article | None)", "Article), Article)"), encoding="utf-8"
    )
    checked = check(wrong, cache)
    assert 'Expression is of type "Article | None", not "Article"' in checked.stdout
