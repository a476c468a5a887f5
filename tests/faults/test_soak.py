"""Memory under load: what a run took is given back. The hour is `python -m bench.loads soak`."""

import pytest

from bench.loads.soak import soak

KIB_PER_RUN = 4
WAVERING_MIB = 4.0  # allocators keep what they were given for a while


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_no_process_grows_with_the_runs_that_it_moved() -> None:
    seen = soak(is_quick=True)
    assert seen["unfinished_count"] == 0, seen["faults"]
    first, last = (seen["samples"][at]["run_count"] for at in (len(seen["samples"]) // 4, -1))
    assert last > first
    allowed = WAVERING_MIB + (last - first) * KIB_PER_RUN / 1024
    grown = {part: seen[f"{part}_growth_mib"] for part in ("gateway", "pool", "children")}
    assert {part: mib for part, mib in grown.items() if mib > allowed} == {}, allowed
