"""Validate what authors write as ids, names, texts, choices, conditions, numbers, durations and JSON."""

import inspect
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any, Final, TypeVar

from pydantic_core import from_json, to_json

from smithers.durations import seconds
from smithers.errors import InvalidTree
from smithers.ids import (
    MAX_CORRELATION_CHARS,
    MAX_WORKFLOW_NAME_CHARS,
    NODE_ID_PATTERN,
    SIGNAL_NAME_RULE,
    is_signal_name,
    means_itself,
)

SCOPE_MARK: Final = "@@"  # separates a node's id from its loops' path
MAX_WORD_CHARS: Final = 200

Choice = TypeVar("Choice", bound=StrEnum)
Kind = TypeVar("Kind")


def check_id(id: object, kind: str) -> str:
    """Return an id that can stand in a URL's path; raise InvalidTree otherwise."""
    if not isinstance(id, str) or not _is_unicode(id) or NODE_ID_PATTERN.fullmatch(id) is None:
        raise InvalidTree(
            f"{kind}({id!r}): an id is 1 to 200 characters, without spaces and slashes"
        )
    if not means_itself(id):
        raise InvalidTree(
            f"{kind}({id!r}): an id stands in URLs, which fold . and .. away and read %20 as a blank"
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


def check_signal_name(name: object, where: str) -> str:
    """Return a name under which a signal can be sent; raise InvalidTree for one that cannot be sent."""
    if not isinstance(name, str) or not is_signal_name(name):
        raise InvalidTree(f"{where} takes {SIGNAL_NAME_RULE}; not {name!r:.200}")
    return name


def check_correlation_id(text: Any, where: str) -> Any:
    """Return a correlation id that a signal can be sent with, or None; raise InvalidTree otherwise."""
    text = check_text(text, where)
    if text is not None and len(text) > MAX_CORRELATION_CHARS:
        raise InvalidTree(f"{where} takes at most {MAX_CORRELATION_CHARS} characters")
    return text


def check_workflow_name(name: Any) -> None:
    """Raise InvalidTree for a name by which runs could not be listed."""
    where = "@workflow(name=...)"
    if len(check_text(name, where)) > MAX_WORKFLOW_NAME_CHARS:
        raise InvalidTree(f"{where} takes at most {MAX_WORKFLOW_NAME_CHARS} characters")


def check_word(word: Any, where: str) -> None:
    """Raise InvalidTree for anything but a word that a command line can name; None is allowed."""
    if word is None:
        return
    if not isinstance(word, str) or not word.isprintable() or " " in word:
        raise InvalidTree(f"{where} takes a word without blanks, not {word!r:.200}")
    if not 0 < len(word) <= MAX_WORD_CHARS:
        raise InvalidTree(f"{where} takes 1 to {MAX_WORD_CHARS} characters, not {len(word)}")


def check_names(given: Iterable[str], where: str) -> tuple[str, ...]:
    """Return several names; a bare string is refused, since it would be iterated letter by letter."""
    if isinstance(given, str):
        raise InvalidTree(f"{where} takes a list: [{given!r}]")
    names = tuple(given)
    for name in names:
        check_text(name, where)
        if name is None:
            raise InvalidTree(f"{where} has None among its names")
    return names


def check_choice(kind: type[Choice], value: Any, where: str) -> Choice:
    """Return the member of an enum that has this value; raise InvalidTree, naming all values, otherwise."""
    try:
        return kind(value)
    except ValueError:
        values = " or ".join(repr(one.value) for one in kind)
        raise InvalidTree(f"{where} takes {values}, not {value!r:.200}") from None


def check_truth(value: object, where: str) -> bool:
    """Say whether a value is true, or what a callable without arguments returns; raise InvalidTree for an awaitable."""
    found = value() if callable(value) else value
    if not isinstance(found, bool) and inspect.isawaitable(found):
        _close(found)
        raise InvalidTree(f"{where} cannot be awaited: what takes time belongs into a task")
    return bool(found)


def check_kind(kind: type[Kind], value: object, where: str) -> Kind:
    """Return a value of this type; raise InvalidTree for any other."""
    if not isinstance(value, kind):
        raise InvalidTree(f"{where} takes a {kind.__name__}, not {value!r:.200}")
    return value


def check_mapping(given: object, where: str) -> dict[str, Any]:
    """Return a copy of a mapping, an empty one for None; raise InvalidTree for anything else."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise InvalidTree(f"{where} takes a mapping, not {given!r:.200}")
    return dict(given)


def check_count(count: object, where: str, *, least: int) -> int:
    """Return a whole number; raise InvalidTree for one below `least`, and for anything else."""
    if not isinstance(count, int) or count < least:
        raise InvalidTree(f"{where} takes a whole number from {least}, not {count!r:.200}")
    return count


def check_duration(duration: object, where: str) -> float | None:
    """Return a duration in seconds, None for None; raise InvalidTree for anything else."""
    return None if duration is None else seconds(duration, where)


def check_json(value: Any, where: str) -> Any:
    """Return a value as plain JSON; raise InvalidTree for a value that JSON cannot represent."""
    try:
        return from_json(to_json(value))
    except ValueError as error:
        raise InvalidTree(f"{where} takes JSON: {error}") from None


def check_work(do: Any, where: str) -> Any:
    """Return a task's work; raise InvalidTree for a coroutine: it can be awaited only once, and each render makes another."""
    if not callable(do) and inspect.isawaitable(do):
        _close(do)
        raise InvalidTree(f"{where} got a coroutine: pass the function, or a lambda that calls it")
    return do


def _close(awaitable: object) -> None:
    """Close a coroutine, so that the author is not also warned that it was never awaited."""
    if inspect.iscoroutine(awaitable):
        awaitable.close()


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
