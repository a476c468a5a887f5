"""Git repositories for tests."""

import subprocess
from pathlib import Path


def make_repository(place: Path, *messages: str) -> Path:
    """Make a repository with an empty commit for each message."""
    git(place, "init", "--quiet", "--initial-branch=main", ".")
    for message in messages:
        git(place, "commit", "--quiet", "--allow-empty", "--message", message)
    return place


def git(place: Path, *arguments: str) -> str:
    """Call git there as somebody whom no configuration names; return what it says."""
    who = ("-c", "user.name=Ann Author", "-c", "user.email=ann@example.org")
    command = ["git", *who, "-c", "commit.gpgSign=false", "-C", str(place), *arguments]
    return subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip()
