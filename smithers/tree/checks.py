"""What an author may write as an id, a name or a text."""

from collections.abc import Iterable
from typing import Any, Final

from smithers.errors import InvalidTree
from smithers.ids import NODE_ID_PATTERN

SCOPE_MARK: Final = "@@"  # parts a node's id from its loops' path
MAX_WORD_CHARS: Final = 200


def check_id(id: object, kind: str) -> str:
    """Return an id as it may stand in a path; raise InvalidTree otherwise."""
    if not isinstance(id, str) or not _is_unicode(id) or NODE_ID_PATTERN.fullmatch(id) is None:
        raise InvalidTree(
            f"{kind}({id!r}): an id is 1 to 200 characters, without spaces and slashes"
        )
    if SCOPE_MARK in id or id.endswith(SCOPE_MARK[0]):
        raise InvalidTree(f"{kind}({id!r}): {SCOPE_MARK} in an id is kept for the paths of loops")
    return id


def check_text(text: Any, where: str) -> Any:
    """Return a text that can be sent and stored, or None; raise InvalidTree otherwise."""
    if text is None:
        return None
    if not isinstance(text, str):
        raise InvalidTree(f"{where} takes a text, not {type(text).__name__}")
    if "\x00" in text or not _is_unicode(text):
        raise InvalidTree(
            f"{where}: a NUL or half a surrogate pair cannot be stored: {text[:200]!r}"
        )
    return text


def check_word(word: Any, where: str) -> None:
    """Raise InvalidTree for what is no word that a command can name, too; None is none at all."""
    if word is None:
        return
    if not isinstance(word, str) or not word.isprintable() or " " in word:
        raise InvalidTree(f"{where} takes a word without blanks, not {word!r:.200}")
    if not 0 < len(word) <= MAX_WORD_CHARS:
        raise InvalidTree(f"{where} takes 1 to {MAX_WORD_CHARS} characters, not {len(word)}")


def check_names(given: Iterable[str], where: str) -> tuple[str, ...]:
    """Return several names; one bare text is a slip, and would be taken for its letters."""
    if isinstance(given, str):
        raise InvalidTree(f"{where} takes a list: [{given!r}]")
    names = tuple(given)
    for name in names:
        check_text(name, where)
        if name is None:
            raise InvalidTree(f"{where} has None among its names")
    return names


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
