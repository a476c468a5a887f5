"""Make statements of one pattern: they differ in a few words, which are constants, never a caller's values."""

import re
from typing import Final

PLACE: Final = re.compile(r"\{([a-z_]+)\}")


def fill(pattern: str, **words: str) -> str:
    """Put a word into each {place} of a pattern; raises ValueError for a place without a word, or a word without a place."""
    places = set(PLACE.findall(pattern))
    if places != words.keys():
        raise ValueError(f"the places are {sorted(places)}, the words {sorted(words)}")
    return PLACE.sub(lambda place: words[place[1]], pattern)
