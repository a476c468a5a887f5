"""Random workflows as data, the builders that they stand for, and scripts that say what each node comes to.

What a node comes to depends only on its id, its iteration and its failures so far: so every order of events, with
every death in between, must come to the same end.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any

from hypothesis import strategies as st

from smithers.engine.facts import NodeKey, written_id
from smithers.states import NodeState
from smithers.tree import (
    Approval,
    Branch,
    Child,
    Loop,
    Parallel,
    Retry,
    Saga,
    Sequence,
    Signal,
    Step,
    Task,
    Timer,
    Try,
)
from tests.support.engine import World

MAX_STEPS = 600


@dataclass
class Spec:
    """An element of a random tree; `options` are what its kind takes."""

    kind: str
    id: str = ""
    children: "list[Spec]" = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)


def leaves_of(spec: Spec) -> Iterator[Spec]:
    """List the leaves depth first."""
    if not spec.children and spec.kind in ("task", "approval", "signal", "timer"):
        yield spec
    for child in spec.children:
        yield from leaves_of(child)


def specs(*, has_tries: bool = False) -> st.SearchStrategy[Spec]:
    """Draw a tree by its seed: hypothesis' own draws stay small, and find few nested loops."""
    return st.integers(0, 2**32).map(lambda seed: random_spec(Random(seed), has_tries=has_tries))


def random_spec(random: Random, max_leaves: int = 10, *, has_tries: bool = False) -> Spec:
    """Make a tree. Conditions and needs look only at nodes before it in its own sequence, which makes them certain."""
    maker = _Maker(random, random.randint(1, max_leaves), has_tries=has_tries)
    root = maker.group(0, ())
    known = [leaf.id for leaf in leaves_of(root)]
    if known and random.random() < 0.3:
        for leaf in leaves_of(root):
            if random.random() < 0.25:
                leaf.options["depends_on"] = [random.choice(known)]
    return root


class _Maker:
    """One random tree on its way."""

    def __init__(self, random: Random, leaf_count: int, *, has_tries: bool) -> None:
        self._random = random
        self._has_tries = has_tries
        self._left = leaf_count
        self._names = iter(f"n{number}" for number in range(1000))
        self._loops = iter(f"l{number}" for number in range(1000))

    def group(self, depth: int, before: tuple[str, ...]) -> Spec:
        random = self._random
        if self._has_tries and random.random() < (0.6 if depth else 0.3):
            return self._try()
        kind = random.choice(["seq", "par", "par", "loop", "loop", "branch", "if"])
        if (kind in ("branch", "if") and not before) or depth == 0:
            kind = random.choice(["seq", "par"])
        spec = Spec(
            kind, next(self._loops) if kind == "loop" else "", options=self._options(kind, before)
        )
        inner = () if kind == "loop" else before
        for _ in range(2 if kind == "branch" else random.randint(1, 4)):
            if self._left <= 0:
                break
            if depth < 4 and random.random() < 0.45:
                child = self.group(depth + 1, inner)
            else:
                self._left -= 1
                child = self._leaf(inner)
            spec.children.append(child)
            if kind in ("seq", "loop") and child.kind == "task" and not child.options["skip_if"]:
                inner = (*inner, child.id)
        spec.options["counted"] = next((c.id for c in spec.children if c.kind == "task"), None)
        return spec

    def _try(self) -> Spec:
        """Make a Try or a Saga of tasks one after another: where it fails does not depend on the order of events."""
        random = self._random
        spec = Spec(random.choice(["try", "saga"]), next(self._loops))
        for _ in range(2 * random.randint(1, 3)):
            self._left -= 1
            leaf = self._leaf(())
            leaf.options |= {"needs_approval": False, "slow_retry": False}
            if leaf.kind == "task" and random.random() < 0.5:
                leaf.options |= {"failures": 1, "retries": 0, "continue_on_fail": False}
            spec.children.append(leaf)
        spec.options = {
            "has_catch": random.random() < 0.6,
            "on_failure": random.choice(["fail", "continue"]),
            "counted": None,
        }
        return spec

    def _options(self, kind: str, before: tuple[str, ...]) -> dict[str, Any]:
        random = self._random
        match kind:
            case "par":
                return {"limit": random.choice([None, None, 1, 2])}
            case "loop":
                on_max = "fail" if random.random() < 0.1 else "return-last"
                return {
                    "max": random.randint(1, 3),
                    "until": random.randint(1, 4),
                    "on_max": on_max,
                }
            case "branch" | "if":
                return {"on": random.choice(before)}
            case _:
                return {}

    def _leaf(self, before: tuple[str, ...]) -> Spec:
        random, name = self._random, next(self._names)
        kind = random.choice(["task"] * 7 + ["approval", "signal", "timer"])
        if kind != "task":
            on_deny = random.choice(["fail", "continue", "continue", "skip"])
            return Spec(kind, name, options={"on_deny": on_deny})
        failures = random.choice([0, 0, 0, 0, 1, 2])
        options: dict[str, Any] = {
            "failures": failures,  # the first attempts of each iteration fail
            "retries": failures if random.random() < 0.9 else 0,
            "continue_on_fail": random.random() < 0.5,
            "needs_approval": random.random() < 0.08,
            "skip_if": random.random() < 0.08,
            "slow_retry": random.random() < 0.3,
        }
        if before and random.random() < 0.3:
            options["needs"] = random.choice(before)
        return Spec("task", name, options=options)


def builder_of(spec: Spec) -> Callable[[Any], Child]:
    """Return the builder of a random tree."""
    return lambda ctx: _build(spec, ctx)


def _build(spec: Spec, ctx: Any) -> Child:
    if spec.kind in ("task", "approval", "signal", "timer"):
        return _build_leaf(spec)
    children = [_build(child, ctx) for child in spec.children]
    match spec.kind:
        case "try":
            *body, last = children
            end = body.pop() if len(body) > 1 and spec.options["has_catch"] else None
            caught = last if spec.options["has_catch"] else None
            return Try(spec.id, *body, catch=caught, finally_=end if caught else last)
        case "saga":
            steps = zip(children[::2], children[1::2], strict=True)
            return Saga(
                spec.id, *(Step(*step) for step in steps), on_failure=spec.options["on_failure"]
            )
        case "par":
            return Parallel(*children, max_concurrency=spec.options["limit"])
        case "loop":
            counted = spec.options["counted"]
            count = 0 if counted is None else _count(ctx, counted)
            return Loop(
                spec.id,
                *children,
                until=count >= spec.options["until"],
                max_iterations=spec.options["max"],
                on_max_reached=spec.options["on_max"],
            )
        case "branch":
            first, *second = [*children, None]
            return Branch(_chosen(spec, ctx), first, second)
        case "if":
            return Sequence(children) if _chosen(spec, ctx) else None
        case _:
            return Sequence(children)


def _count(ctx: Any, node_id: str) -> int:
    latest = ctx.output_maybe(node_id)
    return 0 if latest is None else latest["iteration"] + 1


def _chosen(spec: Spec, ctx: Any) -> bool:
    output = ctx.output_maybe(spec.options["on"])
    return output is not None and output["is_even"]


def _build_leaf(spec: Spec) -> Child:
    options = spec.options
    after = options.get("depends_on", ())
    match spec.kind:
        case "approval":
            return Approval(spec.id, title=spec.id, on_deny=options["on_deny"], depends_on=after)
        case "signal":
            return Signal(spec.id, event="go", correlation_id=spec.id, depends_on=after)
        case "timer":
            return Timer(spec.id, duration=7, depends_on=after)
        case _:
            return Task(
                spec.id,
                None,
                retries=options["retries"],
                retry=Retry(initial=20) if options["slow_retry"] else Retry(initial=0.1),
                continue_on_fail=options["continue_on_fail"],
                needs_approval=options["needs_approval"],
                skip_if=options["skip_if"],
                needs={"x": options["needs"]} if "needs" in options else None,
                depends_on=after,
            )


class Play:
    """One run of a random tree, to its end, in an order that `choices` decide."""

    def __init__(self, spec: Spec, choices: list[int], **how: Any) -> None:
        self.world = World(builder_of(spec), **how)
        self._specs = {leaf.id: leaf for leaf in leaves_of(spec)}
        self._choices = iter(choices)
        self.most_running = 0

    def to_end(self) -> World:
        world = self.world.begin()
        for _ in range(MAX_STEPS):
            self.most_running = max(self.most_running, len(world.running))
            if world.is_over:
                return world
            self._step()
        raise AssertionError(f"no end in {MAX_STEPS} steps: {world.events[-20:]}")

    def _step(self) -> None:
        actions = self._actions()
        if not actions:
            assert self.world.try_next(), f"stuck: {self.world.states()} {self.world.events[-9:]}"
            return
        choice = next(self._choices, 0)
        if choice % 7 == 6 and self.world.try_next():
            return
        actions[choice % len(actions)]()

    def _actions(self) -> list[Callable[[], object]]:
        world = self.world
        actions: list[Callable[[], object]] = [
            partial(self._end_attempt, key) for key in sorted(world.running)
        ]
        for key, fact in sorted(world.rows.nodes.items()):
            if fact.state is NodeState.WAITING_APPROVAL:
                actions.append(partial(world.decide, key, is_approved=_is_approved(key)))
            elif fact.state is NodeState.WAITING_EVENT and not self._is_sent(key):
                actions.append(partial(world.signal, "go", 1, written_id(key.node_id)))
        return actions

    def _is_sent(self, key: NodeKey) -> bool:
        name = written_id(key.node_id)
        return any(signal.correlation_id == name for signal in self.world.rows.signals)

    def _end_attempt(self, key: NodeKey) -> None:
        spec = self._specs[written_id(key.node_id)]
        if self.world.run.facts.nodes[key].failures < spec.options["failures"]:
            self.world.fail(key)
        else:
            self.world.finish(key, value={"iteration": key.iteration, "is_even": _is_even(key)})


def _is_even(key: NodeKey) -> bool:
    return sum(map(ord, key.node_id)) % 2 == 0


def _is_approved(key: NodeKey) -> bool:
    return sum(map(ord, key.node_id)) % 3 != 0
