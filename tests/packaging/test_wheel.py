"""What a user gets who installs the wheel, beside files of his own that are named like our packages."""

import os
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

TREE = Path(__file__).resolve().parents[2]
VERSION = tomllib.loads((TREE / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
DECOYS = ("gateway.py", "migrations.py", "smithers.py", "worker.py")
COMMAND_LIMIT_S = 60


def call(command: Sequence[str], *, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, without our environment's PYTHON*."""
    return subprocess.run(
        command,
        cwd=cwd,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTHON")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=COMMAND_LIMIT_S,
        check=False,
    )


def run(command: Sequence[str], *, cwd: Path) -> str:
    """Run a command that must succeed, and return what it printed."""
    done = call(command, cwd=cwd)
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    build = ["-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(TREE)]
    run([sys.executable, *build], cwd=out)
    (wheel,) = out.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory) -> Path:
    """Give the bin directory of an environment that has the wheel, and our environment's other packages."""
    home = tmp_path_factory.mktemp("installed") / "venv"
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python)]
    run([*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel)], cwd=home)
    # Dependencies by path. A .pth within this path is not read, so the checkout stays invisible.
    (site_packages,) = home.glob("lib/python*/site-packages")
    dependencies = site_packages / "dependencies.pth"
    dependencies.write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return home / "bin"


@pytest.fixture
def beside_decoys(tmp_path: Path) -> Path:
    for name in DECOYS:
        (tmp_path / name).write_text('raise SystemExit("a decoy was imported")\n', encoding="utf-8")
    return tmp_path


def files_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_the_three_packages_and_the_migrations_and_nothing_else(wheel):
    in_tree = {
        str(path.relative_to(TREE))
        for package in ("gateway", "smithers", "worker")
        for path in (TREE / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    migrations = {
        f"smithers/{path.relative_to(TREE)}"
        for path in (TREE / "migrations").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    in_wheel = {name for name in files_in(wheel) if ".dist-info/" not in name}
    assert in_wheel == in_tree | migrations


def test_the_wheel_is_typed_and_licensed(wheel):
    names = files_in(wheel)
    assert "smithers/py.typed" in names
    assert any(name.endswith("/licenses/LICENSE") for name in names)


def test_the_command_says_its_version_beside_decoys(installed, beside_decoys):
    said = run([str(installed / "smithers"), "--version"], cwd=beside_decoys)
    assert VERSION in said


def test_the_command_helps_beside_decoys(installed, beside_decoys):
    assert "serve" in run([str(installed / "smithers"), "--help"], cwd=beside_decoys)


@pytest.mark.parametrize("package", ["gateway", "smithers", "worker"])
def test_a_safe_path_finds_our_package_and_not_the_decoy(installed, beside_decoys, package):
    program = f"import {package}; print({package}.__file__)"
    found = run([str(installed / "python"), "-P", "-c", program], cwd=beside_decoys)
    assert Path(found.strip()).is_relative_to(installed.parent)


def test_the_pool_that_starts_beside_a_decoy_worker_is_ours(installed, beside_decoys):
    done = call([str(installed / "python"), "-P", "-m", "worker"], cwd=beside_decoys)
    assert "use `smithers worker`" in done.stderr  # it wants its settings from whoever starts it


def test_the_page_of_the_api_is_drawn_from_files_of_the_wheel(installed, beside_decoys):
    program = (
        "import gateway.documentation as documentation\n"
        "from gateway.routes import ROUTES\n"
        "page, _ = documentation.Documentation(ROUTES[:1])._page\n"
        "print(documentation.__file__)\n"
        "print(b'get_health' in page)\n"
    )
    found = run([str(installed / "python"), "-P", "-c", program], cwd=beside_decoys)
    where, is_drawn = found.splitlines()
    assert Path(where).is_relative_to(installed.parent)
    assert is_drawn == "True"


def test_the_migrations_are_found_where_the_wheel_put_them(installed, beside_decoys):
    program = (
        "from smithers.store.revisions import migrations_dir, read_revisions\n"
        "print(migrations_dir())\n"
        "print(read_revisions().head)\n"
        "print(*sorted(path.name for path in migrations_dir().glob('functions/*.sql')))\n"
    )
    found = run([str(installed / "python"), "-P", "-c", program], cwd=beside_decoys)
    where, head, functions = found.splitlines()
    assert Path(where).is_relative_to(installed.parent)
    newest = max((TREE / "migrations" / "versions").glob("*.py")).name
    assert newest.startswith(head)
    assert functions.split() == sorted(
        path.name for path in (TREE / "migrations" / "functions").glob("*.sql")
    )
