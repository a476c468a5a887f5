"""The balancers of deploy/ as processes, with the very files of deploy/: only the three variables are put in.

nginx's file is a template, filled as `envsubst` in its image does; HAProxy reads the variables itself.
"""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from string import Template
from typing import Final

import pytest

from bench.ports import free_port

DEPLOY: Final = Path(__file__).resolve().parents[2] / "deploy"
NGINX_TEMPLATE: Final = DEPLOY / "nginx" / "nginx.conf.template"
HAPROXY_FILE: Final = DEPLOY / "haproxy" / "haproxy.cfg"
KINDS: Final = ("nginx", "haproxy")
LIMIT_S: Final = 60


def find_program(name: str) -> str:
    """Find a program of Debian's; skip the test where it is not installed."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def addresses(listen: str, gateways: tuple[str, str]) -> dict[str, str]:
    """The three variables that both files know."""
    return {
        "SMITHERS_LISTEN": listen,
        "SMITHERS_GATEWAY_1": gateways[0],
        "SMITHERS_GATEWAY_2": gateways[1],
    }


def command(kind: str, folder: Path, variables: Mapping[str, str]) -> list[str]:
    """How a balancer is started in the foreground, its files below `folder`."""
    if kind == "haproxy":
        return [find_program("haproxy"), "-db", "-f", str(HAPROXY_FILE)]
    text = Template(NGINX_TEMPLATE.read_text(encoding="utf-8")).safe_substitute(variables)
    file = folder / "nginx.conf"
    file.write_text(text, encoding="utf-8")
    program = find_program("nginx")
    return [program, "-p", str(folder), "-c", str(file), "-e", "stderr", "-g", "daemon off;"]


@contextmanager
def balancing(kind: str, folder: Path, gateways: tuple[str, str]) -> Iterator[str]:
    """Run a balancer before two gateways (`host:port`); give its URL."""
    port = free_port()
    variables = addresses(f"127.0.0.1:{port}", gateways)
    with (folder / f"{kind}.log").open("wb") as log:
        process = subprocess.Popen(
            command(kind, folder, variables),
            env={**os.environ, **variables},
            stdout=log,
            stderr=log,
        )
        try:
            _until_listening(port, process)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(LIMIT_S)


def _until_listening(port: int, process: subprocess.Popen[bytes]) -> None:
    import time

    ends = time.monotonic() + LIMIT_S
    while process.poll() is None and time.monotonic() < ends:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise AssertionError(f"the balancer does not listen; exit code {process.poll()}")
