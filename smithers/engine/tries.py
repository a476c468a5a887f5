"""What a failure does to the Trys and Sagas around it, and how they go on from phase to phase. Pure; works on a Progress.

A failure goes up from where it happened: the innermost Try whose body it is in takes it, and turns to its catch or, with
none, to its finally, after which it goes on up; a Saga turns to undoing. What nobody takes fails the run. Where a part is
given up, or the whole run, what is under way in it is stopped, and what stands in it and has something to clean up does that
first, the innermost before what is around it.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

from smithers.engine.facts import Facts, Problem, TryFact
from smithers.engine.mount import GroupPlace, TryPart, TryPlace, is_cleaning
from smithers.ids import TryId
from smithers.states import TryPhase
from smithers.tree import OnFailure, Saga, Try

if TYPE_CHECKING:
    from smithers.engine.progress import Progress


def fail_at(run: "Progress", group: GroupPlace | None, problem: Problem) -> bool:
    """Let what stands in a group fail; say whether the run goes on."""
    passed: list[TryPlace] = []
    while group is not None:
        if group.part is not None:
            place, part = group.part
            fact = run.facts.tries.get(place.try_id, TryFact())
            match part:
                case TryPart.BODY if fact.phase is TryPhase.BODY:
                    _turn(run, place, TryFact(_answer_of(place), problem=problem))
                    return True
                case TryPart.CATCH if fact.phase is TryPhase.CATCH:
                    if place.has_cleanup:
                        _turn(run, place, TryFact(TryPhase.FAILED, problem=problem))
                        return True
                    _turn(run, place, TryFact(TryPhase.FAILED, is_done=True, problem=problem))
                    passed.append(place)
                case TryPart.END if not fact.is_done:
                    phase = TryPhase.UNDO if isinstance(place.element, Saga) else TryPhase.FAILED
                    _turn(run, place, TryFact(phase, is_done=True, problem=problem))
                    passed.append(place)
                case _:
                    return True  # it has gone on past this part
        group = group.parent
    if run.is_stopped or run.continuation is not None:
        return True  # it was to end in any case
    run.fail(problem)
    for place in passed:
        # A saga is looked at again by whoever takes the run up.
        if isinstance(place.element, Try):
            _put(run, place, TryFact(TryPhase.RAISED, is_done=True, problem=problem))
    return False


def enter(run: "Progress", place: TryPlace) -> None:
    """Write down that a Try's turn has come: from now on it has something to clean up.

    A saga that was undone while the run was ending is not done: where its turn comes again, it undoes what is left, and
    hands its failure on.
    """
    fact = run.facts.tries.get(place.try_id)
    if fact is None:
        _put(run, place, TryFact())
    elif fact.phase is TryPhase.UNDO and fact.is_done and not run.is_stopped:
        if place.group.is_closed:
            _hand_on(run, place, fact)
        else:
            _put(run, place, replace(fact, is_done=False))
            run.overtake()


def end_phase(run: "Progress", place: TryPlace) -> None:
    """Go on with a Try all of whose parts that go on have ended; one that has turned meanwhile does not."""
    fact = run.facts.tries.get(place.try_id, TryFact())
    if fact != place.fact:
        return
    match fact.phase:
        case TryPhase.BODY:
            is_done = isinstance(place.element, Saga) or not place.has_cleanup
            _turn(run, place, TryFact(TryPhase.AFTER, is_done))
        case TryPhase.CATCH:
            _turn(run, place, TryFact(TryPhase.CAUGHT, not place.has_cleanup, fact.problem))
        case TryPhase.AFTER | TryPhase.CAUGHT:
            _turn(run, place, TryFact(fact.phase, is_done=True, problem=fact.problem))
        case TryPhase.FAILED | TryPhase.UNDO | TryPhase.RAISED | TryPhase.BROKEN:
            _hand_on(run, place, fact)


def stop_all(run: "Progress") -> None:
    """Let everything that has something to clean up turn to it: the run is ending."""
    assert run.rendered is not None
    for place in run.rendered.mounted.tries.values():
        if _is_given_up_with(run, place, None):
            _stop(run, place, run.failure or _end_of(run, place))


def _end_of(run: "Progress", place: TryPlace) -> Problem:
    """Say what a run that has not failed does to a Try or a Saga; a resume fails for what it has done to a saga."""
    text = "the run is ending"
    if isinstance(place.element, Saga):
        why = "was cancelled" if run.is_cancelling else "went on as a new one"
        text = f"saga {place.element.id!r} was undone, because the run {why}; start a new run"
    return Problem("RunEnded", text, "RUN_ENDED")


def reopen(facts: Facts) -> dict[TryId, TryFact]:
    """Take back the failures of an earlier era, which is tried again; what a saga has undone stays undone."""
    again = {TryPhase.FAILED, TryPhase.RAISED}
    reopened = [try_id for try_id, fact in facts.tries.items() if fact.phase in again]
    for try_id in reopened:
        facts.tries[try_id] = TryFact()
    return {try_id: TryFact() for try_id in reopened}


def _answer_of(place: TryPlace) -> TryPhase:
    if isinstance(place.element, Saga):
        return TryPhase.UNDO
    return TryPhase.CATCH if place.element.catch else TryPhase.FAILED


def _hand_on(run: "Progress", place: TryPlace, fact: TryFact) -> None:
    """Let the failure of a Try that has cleaned up go on to what stands around it, or a Saga go on."""
    element = place.element
    if (
        isinstance(element, Saga)
        and element.on_failure is OnFailure.CONTINUE
        and not run.is_stopped
    ):
        _turn(run, place, TryFact(TryPhase.CAUGHT, is_done=True, problem=fact.problem))
        return
    _turn(run, place, TryFact(fact.phase, is_done=True, problem=fact.problem))
    assert fact.problem is not None
    if not fail_at(run, place.group.parent, fact.problem):
        raised = TryPhase.RAISED if isinstance(element, Try) else TryPhase.BROKEN
        _put(run, place, TryFact(raised, is_done=True, problem=fact.problem))


def _turn(run: "Progress", place: TryPlace, fact: TryFact) -> None:
    """Go to another phase; where that gives parts up, what stands in them is stopped."""
    assert run.rendered is not None
    if fact.problem is not None:
        for other in run.rendered.mounted.tries.values():
            if _is_given_up_with(run, other, place):
                _stop(run, other, fact.problem)
    _put(run, place, fact)
    run.overtake()


def _stop(run: "Progress", place: TryPlace, problem: Problem) -> None:
    fact = run.facts.tries.get(place.try_id)
    if fact is None or fact.is_done or fact.phase not in (TryPhase.BODY, TryPhase.CATCH):
        return
    phase = TryPhase.UNDO if isinstance(place.element, Saga) else TryPhase.FAILED
    _put(run, place, TryFact(phase, is_done=not place.has_cleanup, problem=problem))
    run.overtake()


def _is_given_up_with(run: "Progress", place: TryPlace, outer: TryPlace | None) -> bool:
    """Say whether a Try stands in what another gives up, or the run (None).

    One that stands in what is done in the end belongs to that: it goes on.
    """
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


def _put(run: "Progress", place: TryPlace, fact: TryFact) -> None:
    run.facts.tries[place.try_id] = fact
    run.turn.tries[place.try_id] = fact
    run.rest.go_on()
    if fact.is_done:
        run.open_tries.discard(place.try_id)
    else:
        run.open_tries.add(place.try_id)
