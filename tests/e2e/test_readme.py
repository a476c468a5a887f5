"""The README's first workflow, run by the README's own commands."""

import json
import re
import shlex
import subprocess
from pathlib import Path

from tests.support.serving import TREE, Serving, serving

README = (TREE / "README.md").read_text(encoding="utf-8")


def run_shown(command: str, server: Serving, run_id: str) -> str:
    """Run a command as it is shown, but for the port and the run."""
    here = command.replace("localhost:7331", server.url.removeprefix("http://"))
    words = shlex.split(here.replace("/RUN/", f"/{run_id}/"))
    done = subprocess.run(words, capture_output=True, check=True, text=True, timeout=30)
    return done.stdout


def test_the_first_workflow_runs_as_the_readme_shows_it(tmp_path: Path) -> None:
    (shown,) = re.findall(r"```python\n(.+?)```", README, re.DOTALL)
    (tmp_path / "publish.py").write_text(shown, encoding="utf-8")
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
