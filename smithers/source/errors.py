"""Why a workflow's source cannot be used, one class for each decision that a caller makes.

SourceError
├── OutsideRoot        the path leads out of the root: 400 WORKFLOW_PATH_OUTSIDE_ROOT
├── SourceNotFound     there is no such file
├── SourceUnreadable   it exists, but is not a regular file, too large, or cannot be opened
├── SourceBroken       it is not valid Python: half written, wrong encoding, a syntax error
├── ImportFailed       it raised when it was imported
└── WorkflowNotFound   it was imported, but has no workflow, or several and none was named

`reason` may be shown to the caller: it names files relative to the root only.
"""

from smithers.errors import SmithersError


class SourceError(SmithersError):
    """A workflow's source cannot be used; `reason` says why, and fits into an answer."""

    code = "INVALID_REQUEST"

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class OutsideRoot(SourceError):
    """A path leads out of the root: by `..`, as an absolute path, or through a link."""

    code = "WORKFLOW_PATH_OUTSIDE_ROOT"


class SourceNotFound(SourceError):
    """There is no file of this name below the root."""


class SourceUnreadable(SourceError):
    """The name exists, but is not usable as a source file."""


class SourceBroken(SourceError):
    """A file is not valid Python; it may be half written."""

    def __init__(self, message: str, *, file: str, line: int | None) -> None:
        place = file if line is None else f"{file}, line {line}"
        super().__init__(f"{place}: {message}")
        self.file = file
        self.line = line


class ImportFailed(SourceError):
    """A module raised while it was imported; `traceback` is the author's part of it.

    `traceback` names libraries by their real paths: it is for the author, not for an answer.
    """

    def __init__(self, reason: str, *, traceback: str, file: str, line: int | None) -> None:
        super().__init__(reason)
        self.traceback = traceback
        self.file = file
        self.line = line


class WorkflowNotFound(SourceError):
    """The module has no workflow of that name, or several and none was named."""

    def __init__(self, reason: str, *, candidates: tuple[str, ...]) -> None:
        super().__init__(reason)
        self.candidates = candidates
