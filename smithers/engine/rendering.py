"""Render: call a builder, and mount the tree that it returns. Pure, except for the builder.

What a builder reads of a node depends on the loops around the node, and these are known only once the tree is mounted. So
where the tree has a node in other loops than those in which the builder has read it, the render is repeated with the loops
of that tree. All passes have the same facts, so nothing is decided twice.
"""

from collections.abc import Callable, Mapping
from functools import partial
from operator import attrgetter
from typing import Any, Final, NamedTuple

import orjson
from pydantic import ValidationError

from smithers.context import Auth, Context, Reads
from smithers.engine.facts import Facts, Problem
from smithers.engine.mount import Mounted, key_in, mount
from smithers.errors import InvalidInput, InvalidOutput, RenderFailed, WorkflowError
from smithers.ids import RunId
from smithers.outputs import (
    decode_output,
    encode_output,
    is_quick,
    misfits_of,
    name_of,
    say_misfits,
)
from smithers.texts import text_of
from smithers.tracebacks import author_traceback, find_place
from smithers.tree import Budget, Sequence, Spent
from smithers.workflow import Workflow

MAX_PASSES: Final = 5
# In a config: what the predecessor of a continued run had already spent.
SPENT: Final = "spent"

# Returns where a workflow is in the run's source, for ChildStart.workflow_export; None: no module has a name for it.
FindExport = Callable[[Workflow[Any]], str | None]
Build = Callable[[], Any]  # calls an author's function
# Calls what it is given, and returns what that does; raises TimeoutError if it takes longer than a render may.
Guard = Callable[[Build], Any]


class Rendered(NamedTuple):
    """A mounted tree and its builder's reads."""

    mounted: Mounted
    reads: Reads
    context: Context[Any]


class Renderer(NamedTuple):
    """What the renders of one run share."""

    run_id: RunId
    workflow: Workflow[Any]
    # Each render reads its own value: what a builder does to it, the next one does not see.
    read_input: Callable[[], Any]
    auth: Auth
    guard: Guard
    carried: str = "null"  # the state that its predecessor handed to a continued run: JSON text
    budget: Budget | None = None
    spent: Spent = Spent()  # what the predecessor of a continued run had already spent
    find_export: FindExport = attrgetter("name")
    keeps_queue: bool = False  # what this run starts gets its queue, whatever a workflow says

    def queue_of(self, workflow: Workflow[Any]) -> str | None:
        """Return the queue for a run of a workflow that this run starts; None: this run's."""
        return None if self.keeps_queue else workflow.queue

    def render(
        self,
        facts: Facts,
        loop_paths: Mapping[str, tuple[str, ...]],
        *,
        is_stopped: bool = False,
    ) -> Rendered:
        """Render with these facts; raise WorkflowError, with the author's traceback, if there is no tree.

        `loop_paths`: the loops around each node that was ever mounted, as far as they are known. `is_stopped`: the run is
        ending, and only clean-up may go on.
        """
        for _ in range(MAX_PASSES):
            rendered = self._render_once(facts, loop_paths, is_stopped=is_stopped)
            found = rendered.mounted.loop_paths
            asked = rendered.reads.outputs | rendered.reads.states
            if all(_is_as_told(facts, node_id, loop_paths, found) for node_id in asked):
                return rendered
            loop_paths = {**loop_paths, **found}
        raise RenderFailed("the tree moves its nodes into other loops at each render")

    def problem_of(self, error: WorkflowError) -> Problem:
        """Return why there is no tree, and the place of the error in the author's file, else where the builder begins."""
        shown = author_traceback(error.__cause__ or error, within=self.workflow.builder)
        place, text = find_place(shown), text_of(error)
        if place is not None:
            text += f" ({place[0]}, line {place[1]})"
        return Problem(type(error).__name__, text, error.code, traceback=shown)

    def encode(self, value: Any, model: Any = None, *, what: str = "the output") -> str:
        """Return a value as its model encodes it, JSON text; raise InvalidOutput, which calls it `what`, if that fails.

        A model is its author's code, and has a render's time.
        """
        encode = partial(encode_output, value, model, what=what)
        if is_quick(value, model):
            return encode()
        try:
            text: str = self.guard(encode)
        except InvalidOutput:
            raise
        except BaseException as error:
            why = f"{type(error).__name__}: {text_of(error)}"[:500]
            raise InvalidOutput(f"{what} does not fit {name_of(model)}: {why}") from error
        return text

    def _render_once(
        self, facts: Facts, loop_paths: Mapping[str, tuple[str, ...]], *, is_stopped: bool
    ) -> Rendered:
        reads = Reads()
        context: Context[Any] = Context(
            run_id=self.run_id,
            input=self.read_input(),
            auth=self.auth,
            carried=decode_output(self.carried),
            facts=facts,
            loop_paths=loop_paths,
            reads=reads,
        )
        try:
            tree: Sequence = self.guard(partial(self._build, context))
            mounted = mount(tree, facts, budget=self.budget, is_stopped=is_stopped)
            return Rendered(mounted, reads, context)
        except WorkflowError:
            raise
        except BaseException as error:  # even an author's CancelledError fails this run alone
            text = f"{type(error).__name__}: {text_of(error)}"
            raise RenderFailed(
                f"the builder of {self.workflow.name} raised {text}"[:2000]
            ) from error

    def _build(self, context: Context[Any]) -> Sequence:
        built = self.workflow.builder(context)
        if built is None:
            raise RenderFailed(
                f"the builder of {self.workflow.name} returned None: is a return missing? [] says that nothing is to be done"
            )
        return Sequence(built)


def build_renderer(
    workflow: Workflow[Any],
    *,
    run_id: RunId,
    input_json: str,
    auth_json: str | None,
    carried_json: str | None,
    config_json: str,
    guard: Guard,
    find_export: FindExport = attrgetter("name"),
    keeps_queue: bool = False,
) -> Renderer:
    """Return the renderer of a run from its row; raise InvalidInput if its input does not fit."""
    auth = orjson.loads(auth_json) if auth_json else {}
    config = orjson.loads(config_json)
    return Renderer(
        run_id=run_id,
        workflow=workflow,
        read_input=_input_reader(workflow, input_json, guard),
        auth=Auth(auth.get("user"), tuple(auth.get("scopes", ()))),
        guard=guard,
        carried=carried_json or "null",
        budget=_budget_under(workflow.budget, config.get("budget")),
        spent=Spent.of(config.get(SPENT)),
        find_export=find_export,
        keeps_queue=keeps_queue,
    )


def _input_reader(workflow: Workflow[Any], input_json: str, guard: Guard) -> Callable[[], Any]:
    """Return what reads the input: plain JSON is read anew each time, a model's value is one for all renders."""
    model = workflow.input_model
    if model is None:
        return partial(decode_output, input_json)  # whole numbers of any size
    try:
        given = guard(partial(model.model_validate_json, input_json))
    except ValidationError as error:
        text = f"the input does not fit {workflow.name}: {say_misfits(error)}"
        raise InvalidInput(text, details=misfits_of(error)) from error
    except BaseException as error:  # a validator raises whatever it likes, with what it was given
        kind = type(error).__name__
        text = f"the input does not fit {workflow.name}: {model.__name__} raised {kind}"
        raise InvalidInput(text) from error
    return lambda: given


def _budget_under(budget: Budget | None, limits: Mapping[str, Any] | None) -> Budget | None:
    """Return a workflow's budget, narrowed by the limits that its run was started with."""
    if not limits:
        return budget
    return Budget(**limits) if budget is None else budget.narrowed(Budget(**limits))


def _is_as_told(
    facts: Facts,
    node_id: str,
    told: Mapping[str, tuple[str, ...]],
    found: Mapping[str, tuple[str, ...]],
) -> bool:
    """Say whether the builder would read the same for a node now that its loops are known."""
    if node_id not in found or told.get(node_id) == found[node_id]:
        return True
    known = facts.keys_of(node_id)
    # There was nothing to read; or it was taken to be in no loop, and is in none.
    return not known or (
        node_id not in told and known == [key_in(node_id, ())] and not found[node_id]
    )
