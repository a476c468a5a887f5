"""The README's first workflow, run by the README's own commands."""

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.support.serving import LIMIT_S, TREE, Serving, serving

README = (TREE / "README.md").read_text(encoding="utf-8")


HTTP_API = (TREE / "docs" / "http-api.md").read_text(encoding="utf-8")


def run_shown(command: str, server: Serving, run_id: str) -> str:
    """Run a command as it is shown, but for the port and the run."""
    here = command.replace("localhost:7331", server.url.removeprefix("http://"))
    words = shlex.split(here.replace("/RUN/", f"/{run_id}/"))
    done = subprocess.run(words, capture_output=True, check=True, text=True, timeout=LIMIT_S)
    return done.stdout


def write_first_workflow(folder: Path) -> None:
    (shown,) = re.findall(r"```python\n(.+?)```", README, re.DOTALL)
    (folder / "publish.py").write_text(shown, encoding="utf-8")


def test_the_client_does_as_its_page_shows_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_first_workflow(tmp_path)
    shown, *_ = re.findall(r"```python\n(.+?)```", HTTP_API, re.DOTALL)
    with serving(tmp_path) as server:
        exec(shown.replace("http://127.0.0.1:7331", server.url), {})
    assert capsys.readouterr().out == "ALL THERE IS TO SAY ABOUT FERRETS.\n"


def test_the_first_workflow_runs_as_the_readme_shows_it(tmp_path: Path) -> None:
    write_first_workflow(tmp_path)
    start, events, approve = re.findall(r"^curl .+$", README, re.MULTILINE)
    with serving(tmp_path) as server, server.client() as client:
        run_id = json.loads(run_shown(start, server, ""))["runId"]
        for event in client.stream(run_id):
            if event.type == "NodeWaitingApproval":
                break
        assert json.loads(run_shown(approve, server, run_id)) == {"runId": run_id}
        stream = run_shown(events, server, run_id)
        assert '"note":"lovely"' in stream
        assert '"type":"RunFinished"' in stream
        assert client.get(run_id).output == "ALL THERE IS TO SAY ABOUT FERRETS."
