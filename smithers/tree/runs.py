"""The leaves that start other runs: a child whose end is awaited, and a run's continuation."""

from collections.abc import Iterable
from typing import Any, Final, Generic

from typing_extensions import TypeVar

from smithers.errors import InvalidTree
from smithers.tree.checks import check_id, check_names, check_text, check_truth
from smithers.tree.reprs import show_id

Output = TypeVar("Output", default=Any)

CONTINUE_ID: Final = "continue-as-new"


class Subflow(Generic[Output]):
    """A leaf that is a child run of a workflow of the same source; the child's output is its output."""

    __slots__ = (
        "continue_on_fail",
        "depends_on",
        "id",
        "input",
        "label",
        "output",
        "skip_if",
        "workflow",
    )

    def __init__(
        self,
        id: str,
        workflow: Any,
        input: Any = None,
        *,
        output: type[Output] | None = None,
        continue_on_fail: bool = False,
        depends_on: Iterable[str] = (),
        skip_if: object = False,
        label: str | None = None,
    ) -> None:
        """Run `workflow`, a result of @workflow, with `input`: a mapping, or its input model."""
        self.id = check_id(id, "Subflow")
        if not hasattr(workflow, "builder"):
            raise InvalidTree(f"Subflow({id!r}, {workflow!r}): that is no function under @workflow")
        self.workflow = workflow
        self.input = {} if input is None else input
        self.output = output
        self.continue_on_fail = continue_on_fail
        self.depends_on = check_names(depends_on, f"Subflow({id!r}, depends_on=...)")
        self.skip_if = check_truth(skip_if, f"Subflow({id!r}, skip_if=...)")
        self.label = check_text(label, f"Subflow({id!r}, label=...)")

    __repr__ = show_id


class ContinueAsNew:
    """A leaf at which the run ends and continues as a new one, with the same input and `state` in `ctx.carried`."""

    __slots__ = ("depends_on", "id", "label", "skip_if", "state")

    def __init__(
        self,
        state: Any = None,
        *,
        id: str = CONTINUE_ID,
        depends_on: Iterable[str] = (),
        skip_if: object = False,
        label: str | None = None,
    ) -> None:
        """Everything else that is running in the run is stopped."""
        self.id = check_id(id, "ContinueAsNew")
        self.state = state
        self.depends_on = check_names(depends_on, "ContinueAsNew(depends_on=...)")
        self.skip_if = check_truth(skip_if, "ContinueAsNew(skip_if=...)")
        self.label = check_text(label, "ContinueAsNew(label=...)")

    __repr__ = show_id
