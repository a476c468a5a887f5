"""In the gate a skipped test is a failed one; and everywhere one in which the suite's secret was seen.

With SMITHERS_GATE=1 (`.ci/run` sets it) everything that a test may need is there, so a skip means that something is
proved nowhere. Without it a skip stays one, with its reason. An expected failure is no skip.
"""

import os
from collections.abc import Generator

import pytest

from tests.support import canary

IS_GATE = os.environ.get("SMITHERS_GATE") == "1"


def refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Make a skip a failure that quotes the skip's reason."""
    if report.outcome != "skipped" or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    report.outcome = "failed"
    report.longrepr = f"{reason}\nNothing is skipped in the gate (SMITHERS_GATE=1)."


def refuse_leak(report: pytest.TestReport) -> None:
    """Make a test a failure, with where, in which the suite's secret was seen."""
    for name, text in report.sections:
        canary.look_through(text, name)
    if seen := canary.take_seen():
        report.outcome = "failed"
        report.longrepr = "\n".join(["a secret was shown:", *seen])


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    refuse_leak(report)
    if IS_GATE:
        refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if IS_GATE:
        refuse_skip(report)
    return report
