"""Shows an author where a workflow went wrong: the author's frames, without those of this package.

Text that is meant for an answer goes through without_paths: it names no file outside the root.
"""

import re
import traceback
from pathlib import Path
from typing import Final

OWN_DIRECTORY: Final = str(Path(__file__).parent) + "/"

# Libraries put absolute paths into their messages ("cannot import name 'x' from 'json' (/usr/…)").
# A slash that follows a letter, a colon or a slash belongs to a relative path or to a URL.
QUOTED_PATH: Final = re.compile(r"""(?P<quote>['"])/[^'"\n]*/(?P<name>[^'"/\n]*)(?P=quote)""")
BARE_PATH: Final = re.compile(
    r"(?<![\w:/.~%@-])/(?:[^\s/'\"()<>,:;]+/)+(?P<name>[^\s/'\"()<>,:;]*)"
)
OWN_NAME: Final = re.compile(r"smithers_source_[0-9a-f]{16}\.")


def author_traceback(error: BaseException) -> str:
    """Format an exception with its causes, this package's frames left out."""
    shown = traceback.TracebackException.from_exception(error)
    _leave_out_own_frames(shown)
    return OWN_NAME.sub("", "".join(shown.format()))


def author_message(error: BaseException) -> str:
    """Format an exception's type and text alone, without the line that a SyntaxError quotes."""
    shown = traceback.TracebackException(type(error), error, None)
    shown.text = None  # type: ignore[assignment]  # None where nothing is quoted, whatever typeshed says
    return OWN_NAME.sub("", "".join(shown.format_exception_only())).strip()


def find_place(error: BaseException, suffix: str) -> tuple[str, int | None] | None:
    """Find the innermost file and line of the version whose file names end like this."""
    place = None
    for frame, line in traceback.walk_tb(error.__traceback__):
        if (filename := frame.f_code.co_filename).endswith(suffix):
            place = filename.removesuffix(suffix), line
    return place


def without_paths(text: str) -> str:
    """Shorten every absolute path to its last part."""
    text = QUOTED_PATH.sub(r"\g<quote>…/\g<name>\g<quote>", text)
    return BARE_PATH.sub(r"…/\g<name>", text)


def _leave_out_own_frames(error: traceback.TracebackException) -> None:
    to_visit: list[traceback.TracebackException | None] = [error]
    while to_visit:
        shown = to_visit.pop()
        if shown is None:
            continue
        frames = [frame for frame in shown.stack if not frame.filename.startswith(OWN_DIRECTORY)]
        shown.stack = traceback.StackSummary.from_list(frames)
        to_visit += [shown.__cause__, shown.__context__, *(shown.exceptions or ())]
