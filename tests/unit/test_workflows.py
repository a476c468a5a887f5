"""Which versions of source a child keeps loaded."""

import gc
import sys
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from smithers.ids import SourceHash
from smithers.source.closure import SourceBundle, hash_source
from smithers.source.loading import unload
from smithers.source.version import package_name
from smithers.workflow import Workflow
from worker import workflows as workflows_module
from worker.bodies import Bodies
from worker.workflows import LoadFailed, Workflows

MAX_LOADED = 4
TEXT = """
from smithers import Task, workflow

def body():
    return NUMBER

@workflow
def flow(ctx):
    return Task("t", body)

NUMBER = """


class Sources:
    """In a store's place: has as many versions as are wanted."""

    def __init__(self) -> None:
        self.bundles: dict[SourceHash, SourceBundle] = {}

    def add(self, number: int) -> SourceHash:
        modules = {"flow.py": f"{TEXT}{number}\n"}
        source_hash = hash_source("flow.py", modules)
        self.bundles[source_hash] = SourceBundle(
            entry="flow.py", workflow_name=None, modules=modules, source_hash=source_hash
        )
        return source_hash

    async def find_source(self, source_hash: SourceHash) -> str | None:
        return self.bundles[source_hash].to_json()


class Site:
    """A child's workflows, and the runs that use them."""

    def __init__(self, workflows: Workflows, sources: Sources) -> None:
        self.workflows = workflows
        self.sources = sources

    async def run_each(self, *numbers: int) -> list[SourceHash]:
        """Run a version each, one after another."""
        hashes = [self.sources.add(number) for number in numbers]
        for source_hash in hashes:
            with self.workflows.using(source_hash):
                await self.workflows.get(source_hash, None)
        return hashes

    def list_loaded(self) -> list[SourceHash]:
        return [one for one in self.sources.bundles if package_name(one) in sys.modules]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(workflows_module, "MAX_LOADED", MAX_LOADED)
    sources: Any = Sources()
    workshop: Any = None
    with ThreadPoolExecutor(max_workers=1) as threads:
        bodies = Bodies(
            threads=threads, workshop=workshop, root_dir=tmp_path, on_abandoned=pytest.fail
        )
        yield Site(Workflows(sources, bodies), sources)
    for source_hash in sources.bundles:
        unload(source_hash)


async def test_of_versions_that_no_run_uses_the_last_ones_stay_loaded(site: Site) -> None:
    hashes = await site.run_each(*range(10))
    assert site.list_loaded() == hashes[-MAX_LOADED:]
    await site.run_each(6)
    await site.run_each(10, 11)
    assert hashes[6] in site.list_loaded()
    assert len(site.list_loaded()) == MAX_LOADED


async def test_nothing_of_an_unloaded_version_stays_in_memory(site: Site) -> None:
    source_hash = site.sources.add(0)
    with site.workflows.using(source_hash):
        seen = weakref.ref((await site.workflows.get(source_hash, None)).builder)
    await site.run_each(*range(1, 10))
    gc.collect()
    assert seen() is None


async def test_a_version_that_a_run_uses_stays_loaded(site: Site) -> None:
    first = site.sources.add(0)
    with site.workflows.using(first):
        workflow = await site.workflows.get(first, None)
        hashes = await site.run_each(*range(1, 10))
        assert site.list_loaded() == [first, *hashes[-MAX_LOADED + 1 :]]
        assert site.workflows.find_export(first, workflow) == "flow.py:flow"
        assert await site.workflows.get(first, None) is workflow
    await site.run_each(10, 11, 12, 13)
    assert first not in site.list_loaded()
    with site.workflows.using(first):
        assert isinstance(await site.workflows.get(first, None), Workflow)


async def test_a_version_without_the_wanted_workflow_is_unloaded_too(site: Site) -> None:
    for number in range(10):
        source_hash = site.sources.add(number)
        with site.workflows.using(source_hash), pytest.raises(LoadFailed):
            await site.workflows.get(source_hash, "other")
    assert len(site.list_loaded()) == MAX_LOADED
