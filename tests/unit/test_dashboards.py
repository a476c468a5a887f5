"""The pictures of the dashboards: there is one of each, small, and linked; and how they are drawn."""

import json

import pytest

from bench.dashboards.__main__ import BOARDS, EXPLAINED, PICTURES, name_of
from bench.dashboards.drawing import Line, Picture, nice_step, page, show, unbroken
from bench.server import ROOT_DIR


def test_each_dashboard_has_a_small_picture_that_the_docs_link_to():
    names = {path.stem for path in BOARDS}
    assert {path.stem for path in PICTURES.glob("*.png")} == names
    text = (ROOT_DIR / "docs" / "telemetry.md").read_text(encoding="utf-8")
    for name in names:
        assert f"(pictures/{name}.png)" in text
        assert (PICTURES / f"{name}.png").stat().st_size < 80_000


def test_only_panels_that_exist_are_excused():
    titles = {
        panel["title"]
        for path in BOARDS
        for panel in json.loads(path.read_text(encoding="utf-8"))["panels"]
    }
    assert EXPLAINED.keys() <= titles


def test_a_panel_without_data_says_why():
    text = page("Board", [Picture("Empty", "s", [], "nothing <failed>")], 0, 60)
    assert "no data: nothing &lt;failed&gt;" in text


def test_a_line_is_broken_where_there_was_no_value():
    points = [(0.0, 1.0), (1.0, 1.0), (5.0, 2.0), (6.0, 2.0)]
    assert unbroken(points) == [points[:2], points[2:]]
    text = page("Board", [Picture("One", "s", [Line("a", points)])], 0, 60)
    assert text.count("<polyline") == 2


def test_legends_are_filled_from_labels():
    assert name_of("{{tool}} {{ status }}", {"tool": "grep", "status": "failed"}) == "grep failed"


@pytest.mark.parametrize(
    ("most", "unit", "step", "shown"),
    [
        (0, "short", 1.0, "1"),
        (7, "short", 5.0, "5"),
        (0.03, "s", 0.01, "10 ms"),
        (0.4, "percentunit", 0.2, "20 %"),
        (3 * 1024**2, "bytes", 1024.0**2, "1 MiB"),
        (90, "ops", 50.0, "50/s"),
    ],
)
def test_axes_have_round_numbers(most: float, unit: str, step: float, shown: str):
    assert nice_step(most, unit) == pytest.approx(step)
    assert show(nice_step(most, unit), unit) == shown
