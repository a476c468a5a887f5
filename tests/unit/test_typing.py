"""What authors write is known to a type checker: outputs, inputs, trees."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

TREE = Path(__file__).resolve().parents[2]
SNIPPET = TREE / "tests" / "typing" / "outputs.py"
EXAMPLES = TREE / "examples"
WIDE = ("code_review.py", "demo.py")  # they import all of pydantic-ai, and of the server
PAGES = [TREE / "README.md", TREE / "docs" / "authoring.md"]


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


def check_as_users_do(paths: list[Path], cache: Path) -> subprocess.CompletedProcess[str]:
    """Check in mypy's default mode: without this project's settings."""
    command = [sys.executable, "-m", "mypy", "--config-file=", "--cache-dir", str(cache)]
    return subprocess.run(
        [*command, "--follow-imports", "silent", *map(str, paths)],
        cwd=TREE,
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
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


def test_what_is_shown_to_authors_is_right_to_a_type_checker_in_its_default_mode(tmp_path):
    paths = [path for path in sorted(EXAMPLES.glob("*.py")) if path.name not in WIDE]
    for page in PAGES:
        shown = re.findall(r"```python\n(.+?)```", page.read_text(encoding="utf-8"), re.DOTALL)
        assert shown, page
        for number, sample in enumerate(shown):
            paths.append(tmp_path / f"{page.stem.lower()}_{number}.py")
            paths[-1].write_text(sample, encoding="utf-8")
    checked = check_as_users_do(paths, TREE / ".mypy_cache" / "shown")
    assert checked.returncode == 0, checked.stdout


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_examples_that_import_much_are_right_to_a_type_checker_in_its_default_mode():
    paths = [EXAMPLES / name for name in WIDE]
    checked = check_as_users_do(paths, TREE / ".mypy_cache" / "shown_wide")
    assert checked.returncode == 0, checked.stdout
