"""Read this version's migrations from their files, without Alembic, which takes 28 MiB: a server only compares."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import smithers

_REVISION: Final = re.compile(r'^revision(?:: str)? = "([^"]+)"', re.MULTILINE)
_BEFORE: Final = re.compile(r'^down_revision(?:: [^=]+)? = "([^"]+)"', re.MULTILINE)
# What follows a schema's number.
FROM_BEFORE: Final = (
    "from before the first release: upgrade it with the code of commit c20fe5c first"
)


@dataclass(frozen=True, slots=True)
class Revisions:
    """The migrations that this version knows, and those from before the first release, which it knows no more."""

    head: str
    older: frozenset[str]
    unreleased: frozenset[str]  # among the older ones: no migration leads on from these

    def is_newer(self, revision: str | None) -> bool:
        """Say whether a schema is from a later version than this one, which works on it; None: there is no schema."""
        return revision is not None and revision != self.head and revision not in self.older


def migrations_dir() -> Path:
    """Return the directory of the migrations: in the wheel, else in the checkout."""
    package = Path(smithers.__file__).parent
    inside = package / "migrations"
    return inside if inside.is_dir() else package.parent / "migrations"


def read_revisions() -> Revisions:
    """Read the revisions from the migrations' files."""
    files = (migrations_dir() / "versions").glob("*.py")
    texts = [path.read_text(encoding="utf-8") for path in files]
    known = {name for text in texts for name in _REVISION.findall(text)}
    older = {name for text in texts for name in _BEFORE.findall(text)}
    (head,) = known - older  # one line of history: a test holds Alembic to it
    unreleased = frozenset(f"{number:04}" for number in range(1, int(min(known))))
    return Revisions(head, frozenset(older) | unreleased, unreleased)
