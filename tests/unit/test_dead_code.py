"""Nothing in the three packages is used by nobody."""

from pathlib import Path

from vulture import Vulture

TREE = Path(__file__).resolve().parents[2]

# Names that others use, or that a protocol wants; each with whose it is.
USED_ELSEWHERE = {
    "iteration_count": "authors",
    "latest": "authors",
    "output_maybe": "authors",
}
# What a class declares is read by its instances' readers, by SQL and by JSON: vulture cannot tell, and takes any
# field of the same name for it.
DECLARATIONS = {"attribute", "variable"}


def test_nothing_is_there_that_nobody_uses():
    vulture = Vulture()
    vulture.scavenge(
        [TREE / package for package in ("gateway", "migrations", "smithers", "worker")]
    )
    found = [
        f"{Path(item.filename).relative_to(TREE)}:{item.first_lineno}: {item.typ} {item.name}"
        for item in vulture.get_unused_code(min_confidence=60)
        if item.typ not in DECLARATIONS and item.name not in USED_ELSEWHERE
    ]
    assert found == []
