"""`smithers graph FILE`: render a workflow's tree without running any of its tasks."""

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from smithers.cli import options as o
from smithers.cli.console import CommandFailed, Exit, open_console, print_json
from smithers.cli.up import FileArgument, InputText, RootDir, find_root, place_below, read_input
from smithers.ids import RunId
from smithers.settings import ServerOptions
from smithers.texts import printable

if TYPE_CHECKING:
    from rich.tree import Tree

NAMES: Final = {"ralph": "loop", "wait-for-event": "signal"}  # the API's words, and ours
SHOWN: Final = (
    "label",
    "title",
    "event",
    "dependsOn",
    "retries",
    "timeoutMs",
    "durationMs",
    "until",
    "if",
)


def graph(
    file: FileArgument,
    *,
    input_text: InputText = None,
    as_json: o.AsJson = False,
    root_dir: RootDir = None,
) -> None:
    """Show a workflow's first tree: the work to do before there is any output.

    The file is imported here, as by a worker; none of its tasks is run. The builder has a render's time.
    """
    options = o.looking_options({"root_dir": root_dir or find_root(file)})
    place, given = place_below(options.root_dir, file), read_input(input_text)
    with redirect_stdout(sys.stderr):  # what the author's code prints is no result
        tree = _render(options, place, given)
    if as_json:
        print_json(tree)
        return
    console = open_console()
    console.print(_draw(tree, Path(file).name))


def _render(options: ServerOptions, place: str, given: dict[str, Any]) -> dict[str, Any]:
    import json

    from smithers.engine.drawing import xml_of
    from smithers.engine.facts import Facts
    from smithers.engine.rendering import build_renderer
    from smithers.errors import InvalidInput, WorkflowError
    from smithers.source.beneath import RootDirectory
    from smithers.source.closure import read_bundle
    from smithers.source.errors import SourceError
    from smithers.source.loading import find_workflow, load_module
    from worker.rendering import install_alarm, render_guard

    install_alarm()
    try:
        with RootDirectory(options.root_dir) as root:
            bundle = read_bundle(root, place)
        workflow = find_workflow(load_module(bundle), bundle.workflow_name)
        renderer = build_renderer(
            workflow,
            run_id=RunId("graph"),
            input_json=json.dumps(given),
            auth_json=None,
            carried_json=None,
            config_json="{}",
            guard=render_guard(workflow.render_timeout_s),
        )
    except SourceError as error:
        raise CommandFailed(error.reason, exit_code=Exit.USAGE) from error
    except InvalidInput as error:
        raise CommandFailed(str(error), hint="--input JSON", exit_code=Exit.USAGE) from error
    try:
        rendered = renderer.render(Facts(), {})
    except WorkflowError as error:
        raise CommandFailed(renderer.problem_of(error).message) from error
    tree: dict[str, Any] = json.loads(xml_of(rendered.mounted, workflow.name))
    return tree


def _draw(tree: dict[str, Any], title: str) -> "Tree":
    from rich.tree import Tree

    drawn = Tree(title)
    for child in tree["children"]:
        _add(drawn, child)
    return drawn


def _add(parent: "Tree", element: dict[str, Any]) -> None:
    from rich.text import Text

    props = element["props"]
    tag = element["tag"].removeprefix("smithers:")
    label = Text(NAMES.get(tag, tag), style="dim")
    if "id" in props:
        label.append(printable(f" {props['id']}"), style="bold not dim")
    for name in SHOWN:
        if name in props:
            label.append(printable(f"  {name}={props[name]}"), style="dim")
    branch = parent.add(label)
    for child in element["children"]:
        _add(branch, child)
