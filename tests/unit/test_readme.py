"""What the README shows works as it stands there."""

import json
import re
from pathlib import Path

import pytest

from gateway.routes import ROUTES
from smithers import Auth
from smithers.engine.facts import Facts
from smithers.engine.rendering import Renderer
from smithers.ids import RunId
from smithers.source.beneath import RootDirectory
from smithers.source.closure import read_bundle
from smithers.source.description import describe
from smithers.source.loading import find_workflow, load_module
from tests.support.source_files import unload

README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
MAKEFILE = (Path(__file__).resolve().parents[2] / "Makefile").read_text(encoding="utf-8")
STARTED = json.loads(re.findall(r"/v1/runs -d '(.+)'", README)[0])


@pytest.fixture
def bundle(tmp_path):
    (shown,) = re.findall(r"```python\n(.+?)```", README, re.DOTALL)
    (tmp_path / STARTED["workflowPath"]).write_text(shown, encoding="utf-8")
    with RootDirectory(tmp_path) as root:
        bundle = read_bundle(root, STARTED["workflowPath"])
    yield bundle
    unload(bundle.source_hash)


def test_the_first_workflow_is_described_without_an_error(bundle):
    described = describe(bundle, None)
    assert (described.workflow_name, described.error) == ("publish", None)


def test_the_first_workflow_renders_what_the_readme_says(bundle):
    renderer = Renderer(
        run_id=RunId("r"),
        workflow=find_workflow(load_module(bundle), None),
        read_input=lambda: STARTED["input"],
        auth=Auth(),
        guard=lambda call: call(),
    )
    mounted = renderer.render(Facts(), {}).mounted
    assert [key.node_id for key in mounted.leaves] == ["write", "approve", "publish"]


def test_the_routes_in_the_readme_are_routes():
    called = re.findall(r"localhost:7331(/\S+)( -d)?", README)
    assert len(called) == 3
    for path, data in called:
        method = "POST" if data else "GET"
        shapes = [
            re.sub(r":\w+", "[^/]+", route.template) for route in ROUTES if route.method == method
        ]
        assert any(re.fullmatch(shape, path) for shape in shapes), path


def test_the_makes_in_the_readme_are_verbs():
    for verb in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{verb}:", MAKEFILE, re.MULTILINE), verb
