"""What the bodies of a child share, in a process of its own: limits are a process's."""

import subprocess
import sys

LEAK = """
import asyncio, os, resource
from pathlib import Path
from worker.premises import Premises

resource.setrlimit(resource.RLIMIT_NOFILE, (256, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
leaked = []

def leak():
    while True:
        leaked.append(os.open("/dev/null", os.O_RDONLY))

premises = Premises(Path("/"))
assert not premises.lacks_descriptors()
try:
    premises.call(leak)
except OSError as error:
    print(error.strerror)
print([os.close(os.open("/dev/null", os.O_RDONLY)) for _ in range(2)], premises.lacks_descriptors())
"""


def test_a_body_that_leaks_descriptors_leaves_some_for_others():
    said = subprocess.run(
        [sys.executable, "-c", LEAK], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    assert said.splitlines() == ["Too many open files", "[None, None] True"]
