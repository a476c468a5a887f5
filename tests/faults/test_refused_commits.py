"""A run whose commits the database refuses, whatever is in them, comes to an end, and takes no other run with it."""

import json
import shutil
from pathlib import Path

from tests.support.world import World

FLOWS = Path(__file__).parents[2] / "chaos" / "flows"
# As if the run's rows had something that no version of this code expects. Only what its owner commits is refused.
REFUSE = """
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF new.run_id = 'refused' AND current_setting('application_name') = 'smithers-commit' THEN
            RAISE EXCEPTION 'not this one';
        END IF;
        RETURN new;
    END $$;
    CREATE TRIGGER refuse BEFORE INSERT ON smithers.events FOR EACH ROW EXECUTE FUNCTION refuse();
"""


async def test_a_run_that_cannot_even_be_failed_by_its_owner_is_failed_by_others(
    world: World,
) -> None:
    shutil.copytree(FLOWS, world.root, dirs_exist_ok=True)
    await world.sql.execute(REFUSE)
    world.start_pool(workers=1)
    names = [f"innocent-{number}" for number in range(5)]
    for name in [*names[:2], "refused", *names[2:]]:
        await world.start(name, "life.py", {"width": 1, "step_s": 0.2})
    for name in names:
        await world.until_status(name, "finished")
    await world.until_status("refused", "failed")
    assert (await world.error("refused"))["code"] == "WORKER_CRASHED"
    assert [json.loads(line)["run"] for line in _ledger(world)].count("refused") == 0


def _ledger(world: World) -> list[str]:
    return (world.root / "ledger.jsonl").read_text().splitlines()
