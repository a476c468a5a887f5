"""What `smithers up` is told to do, as values: which run, where it is served, and the command that goes on with it."""

from dataclasses import dataclass, field
from typing import Any

from smithers.texts import command_line


@dataclass(frozen=True, slots=True)
class ServePlace:
    """Where a run is served, and with which token."""

    host: str
    port: int  # 0: any free one
    auth_token: str | None = field(repr=False)
    metrics: bool


@dataclass(frozen=True, slots=True)
class Again:
    """The command's arguments, to repeat it."""

    variables: tuple[str, ...]  # before the command: secrets, to fill in
    words: tuple[str, ...]  # flags and their values


@dataclass(frozen=True, slots=True, kw_only=True)
class Errand:
    """The run that the command executes."""

    file: str  # as given by the person
    workflow_path: str  # below the root
    input: dict[str, Any]
    run_id: str
    is_resume: bool
    is_yes: bool
    serve: ServePlace | None
    again: Again

    def command(self, *flags: str, run_id: str | None = None) -> str:
        """Return the command that resumes the run; `flags`: switches to add."""
        run = run_id or self.run_id
        added = [flag for flag in flags if flag not in self.again.words]
        words = ["--run-id", run, *added, *self.again.words]
        return " ".join([*self.again.variables, command_line("up", self.file, flags=words)])
