"""Budgets as the engine sees them: what is counted, when agents are held, and what a person's answer does."""

from decimal import Decimal
from typing import Any

import orjson
import pytest

from smithers import Budget, ContinueAsNew, Parallel, Price, Sequence, Task, Timer, Workflow
from smithers.agents import AgentAnswer
from smithers.engine import budgets
from smithers.engine.rendering import build_renderer
from smithers.errors import InvalidTree
from smithers.ids import RunId
from smithers.tree import Spent
from tests.support.engine import World


class Silent:
    """An agent that is never run here."""

    async def run(self, prompt: str, *, output: Any, tools: Any) -> AgentAnswer:
        raise AssertionError(prompt)


def ask(id: str, **options: Any) -> Task[Any]:
    return Task(id, agent=Silent(), prompt="?", **options)


def world_of(budget: Budget, *children: Any, **options: Any) -> World:
    workflow: Workflow[Any] = Workflow(name="test", builder=lambda _ctx: children, budget=budget)
    return World(workflow, **options)


def spent(world: World, node: str = "budget") -> dict[str, Any]:
    heartbeat = world.fact(node).heartbeat
    assert heartbeat is not None
    return orjson.loads(heartbeat)


def test_the_next_agent_is_held_until_a_person_grants_as_much_again():
    world = world_of(Budget(tokens=100), ask("a"), ask("b")).begin()
    world.use("a", 60).use("a", 60).finish("a", value="x")
    assert world.rows.status == "waiting-approval"
    assert world.states() == {"a": "finished", "b": "pending", "budget": "waiting-approval"}
    assert world.rows.requests[world.key("budget")]["summary"] == "120 of 100 tokens"
    assert spent(world) == {"tokens": 120, "cost": "0", "seconds": 0.0}
    world.approve("budget")
    assert world.under_way == ["b"]
    assert world.output("budget")["approved"] is True
    world.use("b", 99).finish("b", value="y")
    assert world.rows.status == "finished"
    assert spent(world, "budget#1")["tokens"] == 99
    assert world.state("budget#1") == "skipped"  # nobody had to be asked again


def test_a_second_grant_is_another_question():
    world = world_of(Budget(tokens=1), ask("a"), ask("b"), ask("c")).begin()
    world.use("a", 5).finish("a").approve("budget")
    world.use("b", 5).finish("b")
    assert world.rows.status == "waiting-approval"
    world.approve("budget#1").finish("c")
    assert world.rows.status == "finished"


def test_an_attempt_that_was_parked_goes_on_with_its_next_number_and_all_its_retries():
    world = world_of(Budget(tokens=100), ask("a", retries=1)).begin()
    world.use("a", 100).park("a")
    assert world.rows.status == "waiting-approval"
    assert world.events_of("a")[-2:] == ["TokenUsageReported a 1", "NodePending a"]
    world.approve("budget")
    assert world.fact("a").attempt == 2
    assert world.fact("a").failures == 0
    world.finish("a", value=1)
    assert world.rows.status == "finished"


def test_what_asks_no_model_goes_on_beside_a_spent_budget():
    world = world_of(Budget(tokens=1), Parallel(ask("a"), Sequence(Task("t", print), ask("b"))))
    world.begin().use("a", 1).park("a")
    assert world.under_way == ["t"]
    assert world.state("budget") == "waiting-approval"
    world.finish("t")
    assert world.rows.status == "waiting-approval"
    assert world.approve("budget").under_way == ["a", "b"]


def test_a_body_that_asks_models_by_itself_is_not_begun_again_before_the_grant():
    world = world_of(Budget(tokens=1), Task("t", print)).begin()
    world.use("t", 1).park("t")
    assert world.rows.status == "waiting-approval"
    assert world.fact("t").attempt == 1
    assert world.approve("budget").under_way == ["t"]


def test_a_body_that_was_stopped_before_a_question_waits_for_the_grant_in_every_process():
    world = world_of(Budget(tokens=1), Parallel(Task("t", print), Task("u", print))).begin()
    world.use("t", 1).park("t").die()
    assert world.under_way == ["u"]
    world.finish("u").die()
    assert world.rows.status == "waiting-approval"
    assert world.fact("t").attempt == 1
    assert world.approve("budget").under_way == ["t"]


def test_time_is_that_of_attempts_and_not_of_waits():
    world = world_of(Budget(seconds=60), ask("a"), Timer("sleep", duration=3600), ask("b")).begin()
    world.use("a", 5, took_s=59).finish("a").try_next()
    assert world.under_way == ["b"]
    world.park("b", took_s=1)
    assert world.rows.requests[world.key("budget")]["summary"] == "60.0 of 60 s"


def test_money_is_counted_by_the_authors_price_before_the_known_one():
    prices = {"m": Price(input=1, output=10)}
    world = world_of(Budget(cost=0.001, prices=prices), ask("a"), ask("b")).begin()
    world.use("a", 991, cost=Decimal(1)).finish("a")  # 990 in, 1 out
    assert spent(world)["cost"] == "0.001"
    assert world.rows.requests[world.key("budget")]["summary"] == "$0.0010 of $0.0010"
    (used,) = [fields for kind, fields in world.rows.history if kind == "TokenUsageReported"]
    assert used["cost"] == 0.001


def test_money_that_nobody_can_count_fails_the_run():
    world = world_of(Budget(cost=5), ask("a")).begin()
    world.use("a", 10)
    assert world.rows.status == "failed"
    assert world.rows.error is not None
    assert world.error.code == "PRICE_UNKNOWN"
    assert "'m'" in world.error.message


def test_tokens_need_no_price():
    world = world_of(Budget(tokens=50), ask("a")).begin().use("a", 10).finish("a")
    assert world.rows.status == "finished"


def test_a_denial_fails_the_run_by_name_and_a_resume_asks_again():
    world = world_of(Budget(tokens=10), ask("a")).begin().use("a", 12).park("a")
    world.deny("budget", note="too dear")
    assert world.rows.status == "failed"
    assert world.rows.error is not None
    assert world.error.code == "BUDGET_SPENT"
    assert world.error.message == "12 of 10 tokens; more was denied by ann: too dear"
    world.resume()
    assert world.rows.status == "waiting-approval"
    world.approve("budget").finish("a")
    assert world.rows.status == "finished"


def test_nobody_who_answers_in_time_is_a_denial_also_after_a_takeover():
    world = world_of(Budget(tokens=10, timeout=30), ask("a"), ask("b")).begin()
    world.use("a", 10).finish("a")
    assert world.rows.due_ms == world.now_ms + 30_000
    assert world.try_next()
    assert world.rows.status == "failed"
    assert world.rows.error is not None
    assert world.error.code == "WAIT_TIMED_OUT"


def test_a_cancel_withdraws_the_question():
    world = world_of(Budget(tokens=10), ask("a")).begin().use("a", 12).park("a").cancel()
    assert world.rows.status == "cancelled"
    assert world.state("budget") == "cancelled"


def test_who_may_grant_is_the_authors_choice():
    budget = Budget(tokens=1, allowed_users=["kim"], allowed_scopes=["money"])
    world = world_of(budget, ask("a")).begin().use("a", 1).park("a")
    request = world.rows.requests[world.key("budget")]
    assert (request["allowedUsers"], request["allowedScopes"]) == (["kim"], ["money"])


def test_an_attempt_that_is_parked_while_the_run_ends_is_cancelled():
    world = world_of(Budget(tokens=1), Parallel(ask("a"), Task("t", print)))
    world = World(world.renderer.workflow, aborts_at_once=False).begin()
    world.use("a", 1).fail("t")
    world.aborting.clear()
    world.park("a")
    assert world.rows.status == "failed"
    assert world.state("a") == "cancelled"


def test_a_run_that_goes_on_as_another_hands_over_what_is_spent():
    world = world_of(Budget(tokens=100), ask("a"), ContinueAsNew({"page": 2})).begin()
    world.use("a", 70, took_s=2).finish("a")
    (successor,) = world.rows.children
    assert successor.spent == Spent(tokens=70, took_ms=2000)


def test_a_start_narrows_and_never_widens():
    def effective(budget: Budget | None, config: dict[str, Any]) -> Budget | None:
        workflow: Workflow[Any] = Workflow(name="test", builder=lambda _ctx: None, budget=budget)
        return build_renderer(
            workflow,
            run_id=RunId("r"),
            input_json="{}",
            auth_json=None,
            carried_json=None,
            config_json=orjson.dumps(config).decode(),
            guard=lambda build: build(),
        ).budget

    declared = Budget(tokens=100, seconds=5, id="purse")
    found = effective(declared, {"budget": {"tokens": 7, "seconds": 9, "cost": 2}})
    assert found is not None
    assert (found.tokens, found.seconds, found.cost, found.id) == (7, 5, 2, "purse")
    assert effective(declared, {}) is declared
    bought = effective(None, {"budget": {"cost": 0.5}})
    assert bought is not None
    assert bought.cost == 0.5
    assert effective(None, {}) is None


@pytest.mark.parametrize("dies_at", range(1, 12))
@pytest.mark.parametrize("side", ["die_before", "die_after"])
def test_a_death_at_any_commit_costs_no_grant_and_forgets_nothing_that_was_kept(dies_at, side):
    world = world_of(Budget(tokens=10), ask("a"), ask("b"), **{side: [dies_at]}).begin()
    grants = 0
    while not world.is_over:
        if world.rows.status == "waiting-approval":
            (key,) = [key for key in world.rows.nodes if world.state(key) == "waiting-approval"]
            world.approve(key)
            grants += 1
            continue
        (node,) = world.under_way
        if answers_of(world, node) < 2 and budgets.is_spent(world.run):
            world.park(node)
        elif answers_of(world, node) < 2:
            world.use(node, 6)
        else:
            world.finish(node)
    assert world.rows.status == "finished"
    assert (answers_of(world, "a"), answers_of(world, "b"), grants) == (2, 2, 1)
    assert (spent(world)["tokens"], spent(world, "budget#1")["tokens"]) == (12, 12)


def answers_of(world: World, node: str) -> int:
    return sum(line.startswith("TokenUsageReported") for line in world.events_of(node))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tokens": 0},
        {"cost": -1},
        {"seconds": 0},
        {"tokens": 1, "id": "a b"},
        {"cost": 1, "prices": {"m": 3}},
    ],
)
def test_a_budget_that_cannot_be_kept_is_refused(options):
    with pytest.raises(InvalidTree):
        Budget(**options)


def test_a_node_of_the_budgets_name_fails_the_run():
    world = world_of(Budget(tokens=1), Task("budget", print)).begin()
    assert world.rows.error is not None
    assert world.error.code == "DUPLICATE_NODE_ID"


def test_the_tree_shows_the_budget_beside_it():
    frame = world_of(Budget(tokens=1), ask("a")).begin().rows.frames[0]
    children = orjson.loads(frame)["children"]
    assert [child["tag"] for child in children] == ["smithers:sequence", "smithers:budget"]
    assert children[1]["props"] == {"id": "budget", "nodeId": "budget", "iteration": "0"}
