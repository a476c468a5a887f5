"""What holds for every tree, every order of events and every death in between."""

from collections import Counter, defaultdict

from hypothesis import given, settings
from hypothesis import strategies as st

from smithers.engine.facts import NodeKey, place_in_time
from smithers.engine.frames import apply_delta, make_delta
from smithers.engine.mount import GroupPlace, LeafPlace, mount
from smithers.engine.schedule import Schedule
from smithers.ids import NodeId
from smithers.states import RunStatus
from tests.support.engine import TERMINAL, World
from tests.support.trees import Play, leaves_of, specs

gate = settings(max_examples=150)

CHOICES = st.lists(st.integers(0, 60), max_size=40)
DEATHS = st.sets(st.integers(1, 40), max_size=6)
CONCURRENCY = st.sampled_from([1, 2, 32])


def outcome(world: World) -> object:
    """Return what must not depend on order or deaths. How far a failing run got does."""
    if world.rows.status is not RunStatus.FINISHED:
        return world.rows.status
    facts = {key: (fact.state, fact.output) for key, fact in world.rows.nodes.items()}
    # The output of an approval carries the moment of its decision.
    return {
        key: fact if '"decided_at"' not in (fact[1] or "") else fact[0]
        for key, fact in facts.items()
    }


@gate
@given(specs(), CHOICES, DEATHS, DEATHS, CONCURRENCY)
def test_every_order_with_every_death_comes_to_the_same_end(spec, choices, before, after, limit):
    plain = Play(spec, []).to_end()
    other = Play(spec, choices, die_before=before, die_after=after, max_concurrency=limit).to_end()
    assert outcome(other) == outcome(plain)


@gate
@given(specs(), CHOICES, DEATHS, DEATHS)
def test_attempts_are_counted_and_a_finished_node_never_starts_again(spec, choices, before, after):
    world = Play(spec, choices, die_before=before, die_after=after).to_end()
    attempts: dict[NodeKey, list[int]] = defaultdict(list)
    finished: Counter[NodeKey] = Counter()
    for kind, fields in world.rows.history:
        if "nodeId" not in fields:
            continue
        key = NodeKey(fields["nodeId"], fields["iteration"])
        if kind == "NodeStarted":
            assert not finished[key]
            attempts[key].append(fields["attempt"])
        elif kind == "NodeFinished":
            finished[key] += 1
    assert all(count == 1 for count in finished.values())
    assert all(numbers == [*range(1, len(numbers) + 1)] for numbers in attempts.values())
    ended = Counter((name, attempt) for name, attempt, _ in world.rows.attempts)
    assert all(count == 1 for count in ended.values())


@gate
@given(specs(), CHOICES, DEATHS)
def test_a_run_has_one_terminal_event_and_nothing_after_it(spec, choices, after):
    world = Play(spec, choices, die_after=after).to_end()
    kinds = [kind for kind, _ in world.rows.history]
    assert sum(kind in TERMINAL for kind in kinds) == 1
    assert kinds[-1] in TERMINAL


@gate
@given(specs(), CHOICES, DEATHS, CONCURRENCY)
def test_no_limit_is_ever_exceeded(spec, choices, after, limit):
    play = Play(spec, choices, die_after=after, max_concurrency=limit)
    play.world.on_turn = _check_limits
    play.to_end()
    assert play.most_running <= limit


def _check_limits(world: World) -> None:
    rendered = world.run.rendered
    if rendered is not None and not world.run.is_ending:
        _count_busy(rendered.mounted.root, {*world.running})


def _count_busy(place: GroupPlace | LeafPlace, running: set[NodeKey]) -> int:
    if isinstance(place, LeafPlace):
        return int(place.key in running)
    busy = sum(_count_busy(child, running) > 0 for child in place.children)
    assert place.limit is None or busy <= place.limit
    assert not place.is_ordered or busy <= 1
    return busy


@gate
@given(specs(), CHOICES)
def test_a_schedule_made_at_once_opens_what_settling_one_by_one_has_opened(spec, choices):
    play = Play(spec, choices)
    play.world.on_turn = _compare_schedules
    play.to_end()


def _compare_schedules(world: World) -> None:
    run = world.run
    if run.is_ending:
        return
    assert run.rendered is not None
    assert run.schedule is not None
    mounted = run.rendered.mounted
    at_once = mount(mounted.tree, run.facts)
    schedule = Schedule(at_once, run.facts)
    opened = {leaf.key for leaf in schedule.take_opened()}
    assert opened == {key for key, leaf in mounted.leaves.items() if leaf.is_open}
    assert schedule.is_done == run.schedule.is_done
    assert schedule.blocked() == run.schedule.blocked()


@gate
@given(specs(), CHOICES, DEATHS)
def test_the_same_happenings_give_the_same_history(spec, choices, after):
    first = Play(spec, choices, die_after=after).to_end()
    second = Play(spec, choices, die_after=after).to_end()
    assert first.rows.history == second.rows.history


@gate
@given(specs(), CHOICES, st.integers(0, 25))
def test_a_cancelled_run_ends_as_cancelled_wherever_it_was(spec, choices, step):
    play = Play(spec, choices)
    world = play.world.begin()
    for _ in range(step):
        if not world.is_over:
            play._step()
    if world.is_over:
        return
    world.cancel()
    assert world.rows.status is RunStatus.CANCELLED
    assert world.events[-1] == "RunCancelled"
    assert not [state for state in world.states().values() if state.startswith(("in-", "waiting"))]


@gate
@given(specs(), CHOICES)
def test_a_failed_run_that_is_mended_and_resumed_finishes_nothing_twice(spec, choices):
    play = Play(spec, choices)
    world = play.to_end()
    for leaf in leaves_of(spec):
        leaf.options["failures"] = 0  # mended
    for _ in range(3):
        if world.rows.status is RunStatus.FAILED:
            world.resume()
            while not world.is_over:
                play._step()
    finished = [event.rpartition(" ")[0] for event in world.events if event.startswith("NodeFin")]
    assert len(set(finished)) == len(finished)
    if world.rows.error is not None:
        assert world.error.code in ("APPROVAL_DENIED", "DEPENDENCY_UNMET", "LOOP_EXHAUSTED")


@gate
@given(st.text(), st.text(), st.text(), st.text())
def test_a_difference_of_two_texts_gives_the_second_back(start, one, other, end):
    previous, current = start + one + end, start + other + end
    body = make_delta(previous, current)
    assert apply_delta(previous, body) == current
    assert apply_delta(current, make_delta(current, previous)) == previous


@gate
@given(st.text(alphabet="a\U0001f600é", max_size=6), st.text(alphabet="a\U0001f600é", max_size=6))
def test_texts_that_are_nearly_the_same_come_back(previous, current):
    assert apply_delta(previous, make_delta(previous, current)) == current


@gate
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), unique=True))
def test_the_keys_of_a_node_are_ordered_by_its_loops_outermost_first(places):
    keys = [NodeKey(NodeId(f"x@@outer={outer}"), inner) for outer, inner in places]
    assert [place_in_time(key) for key in sorted(keys, key=place_in_time)] == sorted(places)


def test_the_random_trees_reach_what_they_are_meant_to():
    seen: Counter[str] = Counter()

    @settings(max_examples=100)
    @given(specs(), CHOICES)
    def look(spec, choices):
        world = Play(spec, choices).to_end()
        seen.update({kind for kind, _ in world.rows.history})
        seen[world.rows.status] += 1
        seen["loops"] += any(fact.iteration for fact in world.rows.loops.values())
        seen["nested"] += any("@@" in key.node_id for key in world.rows.nodes)

    look()
    for kind in ("NodeRetrying", "NodeSkipped", "NodeWaitingEvent", "TimerFired", "ApprovalDenied"):
        assert seen[kind] > 3, seen
    assert seen["finished"] > 20, seen
    assert seen["loops"] > 5, seen
    assert seen["nested"] > 2, seen
