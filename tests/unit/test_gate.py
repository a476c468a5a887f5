"""What tests/support/gate.py promises: in the gate, and only there, a skip is a failure; a shown secret is everywhere."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TREE = Path(__file__).resolve().parents[2]
SUITE = """
import pytest

def test_that_skips_itself():
    pytest.skip("there is no nginx")

@pytest.mark.skip(reason="not today")
def test_that_is_marked():
    pass

@pytest.mark.xfail(reason="known")
def test_that_is_expected_to_fail():
    assert False

def test_that_passes():
    pass
"""


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    (tmp_path / "test_suite.py").write_text(SUITE, encoding="utf-8")
    return tmp_path


def run_suite(suite: Path, *, gate: str) -> subprocess.CompletedProcess[str]:
    options = [
        "-c",
        os.devnull,
        "--rootdir",
        str(suite),
        "-p",
        "tests.support.gate",
        "-p",
        "no:cacheprovider",
    ]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options, "-W", "ignore", str(suite)],
        cwd=TREE,
        # None of the installed plugins is needed, and to load them takes a second.
        env={**os.environ, "SMITHERS_GATE": gate, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_skip_stays_a_skip_outside_the_gate(suite):
    done = run_suite(suite, gate="")
    assert done.returncode == 0
    assert "1 passed, 2 skipped, 1 xfailed" in done.stdout


def test_a_skip_fails_in_the_gate_and_says_why(suite):
    done = run_suite(suite, gate="1")
    assert done.returncode == 1
    assert "1 failed, 1 passed, 1 xfailed, 1 error" in done.stdout  # a mark skips before the test
    assert "there is no nginx" in done.stdout


def test_a_module_that_skips_itself_fails_in_the_gate(suite):
    (suite / "test_absent.py").write_text(
        "import pytest\npytest.importorskip('no_such_module')\n", encoding="utf-8"
    )
    assert run_suite(suite, gate="1").returncode != 0


LEAKS = """
from tests.support.canary import CANARY, look_through

def test_that_prints_it():
    print("a line with", CANARY)

def test_that_hears_it_in_a_log():
    look_through(f"password={CANARY}", "a line of a log")

def test_that_hears_nothing():
    look_through("password=***", "a line of a log")
"""


def test_a_secret_that_was_shown_fails_the_test_that_showed_it(suite):
    (suite / "test_suite.py").write_text(LEAKS, encoding="utf-8")
    done = run_suite(suite, gate="")
    assert "2 failed, 1 passed" in done.stdout, done.stdout
    assert "test_that_hears_nothing" not in done.stdout
