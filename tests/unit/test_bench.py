"""What the bench makes of its figures: pictures, growth, comparisons."""

import json
from xml.etree import ElementTree as ET

import pytest

from bench import history
from bench.curves import HEIGHT, WIDTH, Curve, draw
from bench.loads.soak import Sample, Soak
from bench.rivals.__main__ import table

SVG = "{http://www.w3.org/2000/svg}"


def test_each_curve_is_drawn_inside_a_panel_of_its_own():
    curves = [
        Curve(
            "a < b, ms", "nodes", {"one": [(100, 1.0), (3200, 1.4)], "two": [(100, 3.0)]}, goal=5
        ),
        Curve("nothing, s", "events", {"": [(10, 0.0)]}),
    ]
    root = ET.fromstring(draw(curves))
    panels = root.findall(f"{SVG}g")
    assert [panel.get("transform") for panel in panels] == [
        "translate(0,0)",
        f"translate({WIDTH},0)",
    ]
    dots = [panel.findall(f"{SVG}circle") for panel in panels]
    assert [len(ours) for ours in dots] == [3, 1]
    places = [(float(dot.get("cx", "")), float(dot.get("cy", ""))) for ours in dots for dot in ours]
    assert all(0 < x < WIDTH and 0 < y < HEIGHT for x, y in places)
    left, right, above, _ = places
    assert left[0] < right[0]  # more nodes
    assert left[1] > right[1] > above[1]  # higher costs are further up
    assert "a < b, ms" in [text.text for text in panels[0].findall(f"{SVG}text")]


@pytest.mark.parametrize(("mib_per_s", "percent"), [(0.0, 0), (0.05, 9), (-0.05, -9)])
def test_growth_is_that_of_a_line_through_what_wavers(mib_per_s, percent):
    seen = Soak()
    for second in range(100):
        wavering = (-1) ** second
        seen.samples.append(Sample(second, 0, {"gateway": 40 + mib_per_s * second + wavering}, 0))
    grown, first = seen.growth(lambda sample: sample.mib["gateway"], 0.25)
    assert grown / first * 100 == pytest.approx(percent, abs=1)


def test_a_rival_is_compared_the_right_way_round():
    results = {
        "ours": {"W1": {"p50_ms": 5.0}, "W2": {"runs_per_s": 400.0}},
        "other": {"W1": {"p50_ms": 10.0}, "W2": {"runs_per_s": 800.0}},
    }
    lines = table(results).splitlines()
    assert lines[0] == "| | ours | other | ours is better by |"
    assert [line.rpartition(" p50 ms | ")[2] for line in lines if "p50 ms" in line] == [
        "5.0 | 10.0 | 2.0x |"
    ]
    assert [line.rpartition(" runs/s | ")[2] for line in lines if "runs/s" in line] == [
        "400 | 800 | 0.5x |"
    ]


def test_history_is_what_was_measured_in_full_on_a_commit(tmp_path):
    for name, commit, is_quick, p50_ms in (
        ("2026-02-02-0101-b", "bbbbbbbbb", False, 5.25),
        ("2026-01-01-0101-a", "aaaaaaaaa", False, 1234.0),
        ("2026-03-03-0101-c", "ccccccccc", True, 1.0),
        ("2026-04-04-0101-d", "ddddddddd-dirty", False, 1.0),
    ):
        document = {"commit": commit, "is_quick": is_quick, "medians": {"W1": {"p50_ms": p50_ms}}}
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    (tmp_path / "2026-05-05-0101-loads-e.json").write_text('{"commit": "e", "loads": {}}')
    head, _, row = history.table(history.read_results(tmp_path)).splitlines()
    assert head == "| | | goal | aaaaaaa, 01-01 | bbbbbbb, 02-02 |"
    assert row == "| W1 | three nodes, alone: POST → end seen, p50 ms | ≤ 6 | 1,234 | **5.25** |"
