"""How failures propagate through Trys and Sagas, and how these change phases. Pure.

A failure propagates up the tree: the innermost Try whose body contains it catches it, and turns to its catch or, without
one, to its finally, after which the failure propagates further; a Saga turns to undoing. A failure that nothing catches
fails the run. When a part is abandoned, or the whole run, everything running in it is stopped, and nested Trys and Sagas
clean up first, the innermost before the outer ones.
"""

from dataclasses import replace

from smithers.engine.facts import Facts, Problem, TryFact
from smithers.engine.mount import GroupPlace, TryPart, TryPlace, is_cleaning
from smithers.engine.run_state import RunState
from smithers.ids import TryId
from smithers.states import TryPhase
from smithers.tree import OnFailure, Saga, Try


def fail_at(run: RunState, group: GroupPlace | None, problem: Problem) -> bool:
    """Propagate a failure from a group; say whether the run goes on."""
    passed: list[TryPlace] = []
    while group is not None:
        if group.part is not None:
            place, part = group.part
            fact = run.facts.tries.get(place.try_id, TryFact())
            match part:
                case TryPart.BODY if fact.phase is TryPhase.BODY:
                    _change_phase(run, place, TryFact(_answer_of(place), problem=problem))
                    return True
                case TryPart.CATCH if fact.phase is TryPhase.CATCH:
                    if place.has_cleanup:
                        _change_phase(run, place, TryFact(TryPhase.FAILED, problem=problem))
                        return True
                    _change_phase(
                        run, place, TryFact(TryPhase.FAILED, is_done=True, problem=problem)
                    )
                    passed.append(place)
                case TryPart.END if not fact.is_done:
                    phase = TryPhase.UNDO if isinstance(place.element, Saga) else TryPhase.FAILED
                    _change_phase(run, place, TryFact(phase, is_done=True, problem=problem))
                    passed.append(place)
                case _:
                    return True  # this part is over already: a late failure in it changes nothing
        group = group.parent
    if run.is_stopped or run.continuation is not None:
        return True  # it was ending in any case
    is_first = run.failure is None
    run.fail(problem)
    for place in passed:
        # A new owner of the run finds its failure at these; a Saga fails again there, when its turn comes.
        if is_first and isinstance(place.element, Try):
            run.put_try(place.try_id, TryFact(TryPhase.RAISED, is_done=True, problem=problem))
    return False


def enter(run: RunState, place: TryPlace) -> None:
    """Record that a Try's turn has come: from now on it must clean up.

    A saga that was undone while the run was ending is not completed: when its turn comes again, it undoes what is left, and
    propagates its failure.
    """
    fact = run.facts.tries.get(place.try_id)
    if fact is None:
        run.put_try(place.try_id, TryFact())
    elif fact.phase is TryPhase.UNDO and fact.is_done and not run.is_stopped:
        if place.group.is_closed:
            _hand_on(run, place, fact)
        else:
            run.put_try(place.try_id, replace(fact, is_done=False))
            run.overtake()


def end_phase(run: RunState, place: TryPlace) -> None:
    """End the phase of a Try whose active parts have ended, unless it has changed phase meanwhile."""
    fact = run.facts.tries.get(place.try_id, TryFact())
    if fact != place.fact:
        return
    match fact.phase:
        case TryPhase.BODY:
            is_done = isinstance(place.element, Saga) or not place.has_cleanup
            _change_phase(run, place, TryFact(TryPhase.AFTER, is_done))
        case TryPhase.CATCH:
            _change_phase(run, place, TryFact(TryPhase.CAUGHT, not place.has_cleanup, fact.problem))
        case TryPhase.AFTER | TryPhase.CAUGHT:
            _change_phase(run, place, TryFact(fact.phase, is_done=True, problem=fact.problem))
        case TryPhase.FAILED | TryPhase.UNDO | TryPhase.RAISED | TryPhase.BROKEN:
            _hand_on(run, place, fact)


def stop_all(run: RunState) -> None:
    """Turn every Try and Saga to its clean-up: the run is ending."""
    assert run.rendered is not None
    for place in run.rendered.mounted.tries.values():
        if _stops_with(run, place, None):
            _stop(run, place, run.failure or _end_of(run, place))


def _end_of(run: RunState, place: TryPlace) -> Problem:
    """Return the problem of a Try or a Saga that an end without failure stops: a resume of an undone saga fails with it."""
    text = "the run is ending"
    if isinstance(place.element, Saga):
        why = "was cancelled" if run.is_cancelling else "went on as a new one"
        text = f"saga {place.element.id!r} was undone, because the run {why}; start a new run"
    return Problem("RunEnded", text, "RUN_ENDED")


def reopen(facts: Facts) -> dict[TryId, TryFact]:
    """Clear the failures of an earlier era, to try again; what a saga has undone stays undone."""
    again = {TryPhase.FAILED, TryPhase.RAISED}
    reopened = [try_id for try_id, fact in facts.tries.items() if fact.phase in again]
    for try_id in reopened:
        facts.tries[try_id] = TryFact()
    return {try_id: TryFact() for try_id in reopened}


def _answer_of(place: TryPlace) -> TryPhase:
    """Return the phase into which a failure of its body puts a Try or a Saga."""
    if isinstance(place.element, Saga):
        return TryPhase.UNDO
    return TryPhase.CATCH if place.element.catch else TryPhase.FAILED


def _hand_on(run: RunState, place: TryPlace, fact: TryFact) -> None:
    """Propagate the failure of a Try that has cleaned up, or let a Saga go on."""
    element, was_ending = place.element, run.is_ending
    if isinstance(element, Saga) and element.on_failure is OnFailure.CONTINUE and not was_ending:
        _change_phase(run, place, TryFact(TryPhase.CAUGHT, is_done=True, problem=fact.problem))
        return
    _change_phase(run, place, TryFact(fact.phase, is_done=True, problem=fact.problem))
    assert fact.problem is not None
    if fail_at(run, place.group.parent, fact.problem) or was_ending:
        return  # a new owner of a run that was ending checks it again
    phase = TryPhase.RAISED if isinstance(element, Try) else TryPhase.BROKEN
    run.put_try(place.try_id, TryFact(phase, is_done=True, problem=fact.problem))


def _change_phase(run: RunState, place: TryPlace, fact: TryFact) -> None:
    """Change the phase; if that abandons parts, stop everything in them."""
    assert run.rendered is not None
    if fact.problem is not None:
        for other in run.rendered.mounted.tries.values():
            if _stops_with(run, other, place):
                _stop(run, other, fact.problem)
    run.put_try(place.try_id, fact)
    run.overtake()


def _stop(run: RunState, place: TryPlace, problem: Problem) -> None:
    """Turn a Try or a Saga to its clean-up, if its turn has come and it is not there yet."""
    fact = run.facts.tries.get(place.try_id)
    if fact is None or fact.is_done or fact.phase not in (TryPhase.BODY, TryPhase.CATCH):
        return
    phase = TryPhase.UNDO if isinstance(place.element, Saga) else TryPhase.FAILED
    run.put_try(place.try_id, TryFact(phase, is_done=not place.has_cleanup, problem=problem))
    run.overtake()


def _stops_with(run: RunState, place: TryPlace, outer: TryPlace | None) -> bool:
    """Say whether a Try stops with one around it (`outer`) or with the run (None); one within a clean-up goes on."""
    group = place.group.parent
    while group is not None:
        if group.part is not None:
            around, name = group.part
            if around is outer:
                return True
            fact = run.facts.tries.get(around.try_id, TryFact())
            if name is TryPart.END and is_cleaning(fact):
                return False
        group = group.parent
    return outer is None
