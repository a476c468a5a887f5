"""Show an author where a workflow failed: the author's frames, without those of this package.

An author's exception may be impossible to describe: then the text says so. Text for an HTTP answer goes through
without_paths: it names no file outside the root.
"""

import inspect
import re
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from smithers.texts import sound, text_of

MAX_CHARS: Final = 20_000
_PARENT: Final = Path(__file__).parents[1]
OWN_DIRECTORIES: Final = (f"{_PARENT}/smithers/", f"{_PARENT}/worker/")

# Libraries put absolute paths into their messages ("cannot import name 'x' from 'json' (/usr/…)").
# A slash that follows a letter, a colon or a slash belongs to a relative path or to a URL.
QUOTED_PATH: Final = re.compile(r"""(?P<quote>['"])/[^'"\n]*/(?P<name>[^'"/\n]*)(?P=quote)""")
BARE_PATH: Final = re.compile(
    r"(?<![\w:/.~%@-])/(?:[^\s/'\"()<>,:;]+/)+(?P<name>[^\s/'\"()<>,:;]*)"
)
OWN_NAME: Final = re.compile(r"smithers_source_[0-9a-f]{16}\.")
# A line of a stored version: its files are named after their hash (see smithers.source.version).
PLACE: Final = re.compile(
    r'^[ |]+File "(?P<file>.+)@[0-9a-f]{8}", line (?P<line>\d+)', re.MULTILINE
)


def author_traceback(error: BaseException, *, within: Callable[..., Any] | None = None) -> str:
    """Format an exception with its causes, this package's frames left out, as it can be stored.

    If it has none of the author's frames, the first line of `within`, a function of the author's, is shown instead.
    """
    try:
        shown = traceback.TracebackException.from_exception(error)
        _leave_out_own_frames(shown)
        if within is not None and not _is_of_author(shown):
            shown.stack = traceback.StackSummary.from_list([_beginning_of(within)])
        return _shortened(OWN_NAME.sub("", "".join(shown.format())))
    except BaseException:  # noqa: BLE001 - its notes, its fields and its texts are properties of its author's
        place = "".join(traceback.format_tb(error.__traceback__))
        return _shortened(f"{place}{type(error).__name__}: {text_of(error)}")


def author_message(error: BaseException) -> str:
    """Format an exception's type and text alone, without the line that a SyntaxError quotes."""
    try:
        shown = traceback.TracebackException(type(error), error, None)
        shown.text = None  # type: ignore[assignment]  # None where nothing is quoted, whatever typeshed says
        return OWN_NAME.sub("", "".join(shown.format_exception_only())).strip()
    except BaseException:  # noqa: BLE001 - as above
        return f"{type(error).__name__}: {text_of(error)}"


def find_place(shown: str) -> tuple[str, int] | None:
    """Find the innermost file and line of a workflow's source in a result of author_traceback."""
    places = [*PLACE.finditer(shown)]
    return (places[-1]["file"], int(places[-1]["line"])) if places else None


def without_paths(text: str) -> str:
    """Shorten every absolute path to its last part."""
    text = QUOTED_PATH.sub(r"\g<quote>…/\g<name>\g<quote>", text)
    return BARE_PATH.sub(r"…/\g<name>", text)


def _shortened(text: str) -> str:
    """Cut the middle of a long text: where it began, and what was raised, are at its ends."""
    if len(text) > MAX_CHARS:
        text = f"{text[: MAX_CHARS // 2]}\n…\n{text[-MAX_CHARS // 2 :]}"
    return sound(text)


def _is_of_author(shown: traceback.TracebackException) -> bool:
    return any(not frame.filename.startswith(OWN_DIRECTORIES) for frame in shown.stack)


def _beginning_of(function: Callable[..., Any]) -> traceback.FrameSummary:
    function = inspect.unwrap(function)
    code = function.__code__
    return traceback.FrameSummary(code.co_filename, code.co_firstlineno, code.co_name)


def _leave_out_own_frames(error: traceback.TracebackException) -> None:
    to_visit: list[traceback.TracebackException | None] = [error]
    while to_visit:
        shown = to_visit.pop()
        if shown is None:
            continue
        frames = [frame for frame in shown.stack if not frame.filename.startswith(OWN_DIRECTORIES)]
        if frames or shown is not error:  # otherwise it is a defect of this package
            shown.stack = traceback.StackSummary.from_list(frames)
        to_visit += [shown.__cause__, shown.__context__, *(shown.exceptions or ())]
