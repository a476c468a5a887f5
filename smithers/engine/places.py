"""What becomes of nodes in a new tree (pending, skipped, gone), and what follows a leaf's turn and an iteration. Pure."""

import re
from functools import lru_cache
from typing import Final

from smithers.engine import outcomes, questions, try_blocks, waits
from smithers.engine.facts import LoopFact, NodeFact, NodeKey, NodeMark, Problem
from smithers.engine.mount import LeafPlace, LoopPlace, Mounted
from smithers.engine.rendering import Rendered
from smithers.engine.run_state import RunState
from smithers.engine.turn import Abort
from smithers.events import EventType
from smithers.states import NodeState
from smithers.tree import Leaf, OnMaxReached, Task

_KIND: Final = re.compile(r"(?<=[a-z])(?=[A-Z])")  # HumanTask: human-task


def record_places(run: RunState, rendered: Rendered, before: Rendered | None) -> None:
    """Record what becomes of nodes in a new tree; `before`: the previous one, None if this is the first after a take-up."""
    mounted = rendered.mounted
    was_mounted = before.mounted.leaves if before is not None else {}
    # After a take-up it is unknown what was mounted: every unsettled node is checked.
    known = [*was_mounted] if before is not None else sorted(run.facts.nodes)
    _stop_leaves(run, mounted)
    for key, leaf in mounted.leaves.items():
        fact = run.facts.nodes.get(key)
        if fact is None:
            run.put(key, _new_fact(leaf.element, mounted))
        elif _is_back(fact, was_mounted=key in was_mounted):
            run.put(key, _pending(fact, leaf.element))
        elif fact.state.is_waiting and not _fits(leaf.element, fact):
            waits.cancel_node(run, key, fact, "unmounted")
            run.put(key, _new_fact(leaf.element, mounted)._replace(attempt=fact.attempt))
        elif fact.state is NodeState.PENDING and fact.kind != _kind_of(type(leaf.element).__name__):
            # No event: it stays pending. How it waits, its new kind decides when it begins.
            run.put(key, _pending(fact, leaf.element))
            continue
        else:
            continue
        run.say(EventType.NODE_PENDING, key)
    for key, unchosen in mounted.unchosen.items():
        _pass_over(run, key, run.facts.nodes.get(key) or _new_fact(unchosen, mounted))
    for key in known:
        if not mounted.has(key):
            _pass_over(run, key, run.facts.nodes.get(key))


def _is_back(fact: NodeFact, *, was_mounted: bool) -> bool:
    """Say whether a node that was skipped, or stopped when it left the tree, is in it again."""
    if fact.state is NodeState.SKIPPED:
        return fact.mark is NodeMark.UNCHOSEN
    return fact.state is NodeState.CANCELLED and not was_mounted


def _fits(element: Leaf, fact: NodeFact) -> bool:
    """Say whether a node may go on waiting: its author may have replaced it by another kind."""
    return fact.kind == _kind_of(type(element).__name__) and waits.fits(element, fact.state)


def _pass_over(run: RunState, key: NodeKey, fact: NodeFact | None) -> None:
    """Stop, cancel or skip a node that has not ended, and is not among the tree's live leaves."""
    if fact is None:
        return
    if key in run.in_flight:
        _abort(run, key, "unmounted")
    elif fact.state.is_waiting or key in run.facts.lost:
        waits.cancel_node(run, key, fact, "unmounted")
    elif fact.state is NodeState.PENDING:
        skipped = fact._replace(state=NodeState.SKIPPED, due_ms=None)
        run.put(key, skipped.with_mark(NodeMark.UNCHOSEN))
        run.say(EventType.NODE_SKIPPED, key)


def _abort(run: RunState, key: NodeKey, reason: str) -> None:
    if all(abort.key != key for abort in run.turn.aborts):
        run.turn.aborts.append(Abort(key, reason))


def open_leaf(run: RunState, leaf: LeafPlace, now_ms: int) -> None:
    """Open a leaf whose turn has come."""
    key, element = leaf.key, leaf.element
    fact = run.facts.nodes[key]
    if key in run.in_flight or fact.state.is_settled or fact.state.is_waiting:
        return
    if element.skip_if or _lacks_needs(run, element):
        outcomes.skip(run, key, fact)
    elif not isinstance(element, Task):
        waits.begin(run, leaf, fact, now_ms)
    elif fact.due_ms is not None and fact.due_ms > now_ms:
        run.at(fact.due_ms, key)
    elif not element.needs_approval or questions.is_let_through(run, leaf, fact, now_ms):
        run.make_ready(leaf)


def end_iteration(run: RunState, loop: LoopPlace) -> None:
    """Decide what follows an ended iteration, by the `until` of a render that saw all of it."""
    element, iteration = loop.element, loop.fact.iteration
    if not element.until and iteration + 1 < element.max_iterations:
        fact = LoopFact(iteration + 1, is_done=False)
    elif not element.until and element.on_max_reached is OnMaxReached.FAIL:
        # Not done: a new owner, or a resume with more iterations, comes to this place again.
        text = f"loop {element.id!r} did not come to its end in {element.max_iterations} iterations"
        try_blocks.fail_at(run, loop.group, Problem("LoopExhausted", text, "LOOP_EXHAUSTED"))
        return
    else:
        fact = LoopFact(iteration, is_done=True)
    run.put_loop(loop.loop_id, fact)


def _lacks_needs(run: RunState, element: Leaf) -> bool:
    if not isinstance(element, Task) or not element.needs:
        return False
    assert run.rendered is not None
    for node_id in element.needs.values():
        key = run.rendered.mounted.resolve(node_id, run.facts)
        fact = None if isinstance(key, str) else run.facts.nodes.get(key)
        if fact is None or fact.state is not NodeState.FINISHED:
            return True
    return False


def _stop_leaves(run: RunState, mounted: Mounted) -> None:
    """Stop what runs in parts that were left, and in a run that is ending also what waits."""
    for key in mounted.dying:
        _abort(run, key, "aborted")
    # Questions that no longer count are withdrawn; attempts that died with their process are not made again.
    for key in sorted((run.waiting | run.facts.lost) & mounted.stopped.keys()):
        waits.cancel_node(run, key, run.facts.nodes[key], run.reason)


def _pending(fact: NodeFact, leaf: Leaf) -> NodeFact:
    """Return the fact of a node that will begin as the tree's present element; it may have been of another kind."""
    kind = _kind_of(type(leaf).__name__)
    return fact._replace(state=NodeState.PENDING, kind=kind, label=leaf.label, wait=None)


@lru_cache
def _kind_of(class_name: str) -> str:
    return _KIND.sub("-", class_name).lower()


def _new_fact(leaf: Leaf, mounted: Mounted) -> NodeFact:
    loops = mounted.loop_paths[leaf.id]
    return NodeFact(
        NodeState.PENDING,
        kind=_kind_of(type(leaf).__name__),
        label=leaf.label,
        loop=loops[-1] if loops else None,
    )
