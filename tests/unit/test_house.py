"""Facts about the tree itself: what CONTRIBUTING.md asks for and a linter does not look at."""

import ast
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

TREE = Path(__file__).resolve().parents[2]
PACKAGES = ("gateway", "smithers", "worker")
MADE_BY_TOOLS = {"__pycache__", "build", "dist", "demo-output", "node_modules"}

MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 40
MAX_VERBS = 13

# Each with the reason why it is better long.
LONG_MODULES: dict[str, str] = {}
LONG_FUNCTIONS: dict[str, str] = {
    "smithers/tree/tasks.py:__init__": "a Task's options, one a line, are what authors read",
}

SQL = re.compile(
    r"\b(SELECT\s.+\sFROM|INSERT\s+INTO|UPDATE\s+[\w.]+\s+SET|DELETE\s+FROM|CREATE\s+(TABLE|INDEX|FUNCTION)"
    r"|SELECT\s+[\w.]+\()",
    re.DOTALL,
)
SUPPRESSION = re.compile(r"#\s*(noqa|type:\s*ignore|pragma)\b")
WELL_SUPPRESSED = re.compile(
    r"#\s*(noqa: [A-Z]+\d+(, [A-Z]+\d+)* - \w+|type: ignore\[[\w-]+(, [\w-]+)*\]  # \w+)"
)
UNFINISHED = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|X" + r"XX|HACK)\b")
# Where this was written and what it was installed from are nobody's business.
OF_ONE_MACHINE = re.compile(
    r"(?<![\w.])/(work|opt/pypi|opt/wheels|tmp/leadpg)\b|(?<![\w.])/root/\w"
    r"|pypi\.(org|python)|pythonhosted|npmjs\.|deb\.debian|index-url\s*=|extra-index"
)
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#]+)(?:#[^)]*)?\)")
CODE = re.compile(r"`([^`\s]+)`")
A_PATH = re.compile(
    r"(?:gateway|worker|smithers|migrations|tests|docs|deploy|bench|chaos|examples|\.ci)/[\w./*-]*"
    r"|[\w-]+\.(?:md|toml|txt|yml)|Makefile|LICENSE"
)
CLOCKS = {"now", "utcnow", "today", "time", "monotonic", "perf_counter"}


def walk(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name in MADE_BY_TOOLS or (path.name.startswith(".") and path.name != ".ci"):
            continue
        if path.is_dir():
            yield from walk(path)
        else:
            yield path


def name_of(path: Path) -> str:
    return path.relative_to(TREE).as_posix()


FILES = list(walk(TREE))
MODULES = [path for path in FILES if path.suffix == ".py" and name_of(path).startswith(PACKAGES)]
PYTHON = [path for path in FILES if path.suffix == ".py"]
TEXTS = [path for path in FILES if path.suffix == ".md"]
SOURCES = {path: path.read_text(encoding="utf-8") for path in MODULES}
THIS = Path(__file__).resolve()


@cache  # and not while tests are collected: each process of a parallel run collects all of them
def trees() -> dict[Path, ast.Module]:
    return {path: ast.parse(source) for path, source in SOURCES.items()}


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def length_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    assert function.end_lineno is not None
    return function.end_lineno - function.lineno + 1


def strings(tree: ast.AST) -> Iterator[ast.Constant]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node


def docstrings(tree: ast.Module) -> set[ast.expr]:
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return {
        node.body[0].value
        for node in ast.walk(tree)
        if isinstance(node, owners) and node.body and isinstance(node.body[0], ast.Expr)
    }


def pyproject() -> dict[str, Any]:
    return tomllib.loads((TREE / "pyproject.toml").read_text(encoding="utf-8"))


def requirements() -> list[Requirement]:
    project = pyproject()
    lines = [*project["project"]["dependencies"], *project["dependency-groups"]["dev"]]
    return [Requirement(line) for line in lines]


@pytest.mark.parametrize(
    ("pattern", "planted"),
    [
        (SQL, "SELECT a FROM b"),
        (SQL, "\n    INSERT INTO runs (a) VALUES ($1)"),
        (SQL, "UPDATE smithers.runs SET a = 1"),
        (SQL, "SELECT pg_notify($1, $2)"),
        (SUPPRESSION, "x = 1  # noqa"),
        (SUPPRESSION, "x = 1  # type: ignore"),
        (UNFINISHED, "# TO" + "DO later"),
        (OF_ONE_MACHINE, "cd /wo" + "rk/main"),
        (OF_ONE_MACHINE, "https://py" + "pi.org/simple"),
    ],
)
def test_what_is_forbidden_would_be_seen(pattern, planted):
    assert pattern.search(planted)


@pytest.mark.parametrize(
    "planted", ["# noqa", "# noqa: E501", "# type: ignore", "# type: ignore[misc]"]
)
def test_a_bare_suppression_would_be_seen(planted):
    assert SUPPRESSION.search(planted)
    assert not WELL_SUPPRESSED.search(planted)


def test_there_is_a_tree_to_look_at():
    assert len(MODULES) > 50
    assert {name_of(path).split("/")[0] for path in MODULES} == set(PACKAGES)


def test_every_module_says_its_job_first():
    silent = [name_of(path) for path, tree in trees().items() if not ast.get_docstring(tree)]
    assert silent == []


def test_a_module_fits_one_idea():
    lengths = {name_of(path): len(source.splitlines()) for path, source in SOURCES.items()}
    long = {name: count for name, count in lengths.items() if count > MAX_MODULE_LINES}
    assert long.keys() == LONG_MODULES.keys(), long


def test_a_function_fits_one_screen():
    long = {
        f"{name_of(path)}:{function.name}": length_of(function)
        for path, tree in trees().items()
        for function in functions(tree)
        if length_of(function) > MAX_FUNCTION_LINES
    }
    assert long.keys() == LONG_FUNCTIONS.keys(), long


def test_no_sql_is_made_by_formatting():
    found = [
        f"{name_of(path)}:{node.lineno}"
        for path, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        and SQL.search("".join(str(part.value) for part in strings(node)))
    ]
    assert found == []


def test_sql_lives_in_the_store():
    found = [
        f"{name_of(path)}:{node.lineno}"
        for path, tree in trees().items()
        if not name_of(path).startswith("smithers/store/")
        for node in strings(tree)
        if SQL.search(str(node.value)) and node not in docstrings(tree)
    ]
    assert found == []


def test_the_engine_asks_no_clock():
    found = [
        f"{name_of(path)}:{node.lineno}"
        for path, tree in trees().items()
        if name_of(path).startswith("smithers/engine/")
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in CLOCKS
    ]
    assert found == []


def lines_of_text() -> Iterator[tuple[str, str]]:
    for path in FILES:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if path != THIS:
            for number, line in enumerate(text.splitlines(), 1):
                yield f"{name_of(path)}:{number}", line


def test_nothing_is_left_for_later():
    assert [place for place, line in lines_of_text() if UNFINISHED.search(line)] == []


def test_nothing_tells_of_one_machine_or_of_a_registry():
    assert [place for place, line in lines_of_text() if OF_ONE_MACHINE.search(line)] == []


def test_what_silences_a_linter_names_its_rule_and_its_reason():
    found = [
        place
        for place, line in lines_of_text()
        if ".py:" in place and SUPPRESSION.search(line) and not WELL_SUPPRESSED.search(line)
    ]
    assert found == []


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_a_text_links_to_what_is_there(path):
    targets = LINK.findall(path.read_text(encoding="utf-8"))
    assert [target for target in targets if not (path.parent / target).exists()] == []


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_a_path_that_a_text_names_is_there(path):
    named = {
        word
        for word in CODE.findall(path.read_text(encoding="utf-8"))
        if A_PATH.fullmatch(word.rstrip(":,."))
    }
    assert [word for word in sorted(named) if not list(TREE.glob(word.rstrip(":,./")))] == []


def test_every_package_stands_in_the_architecture():
    text = (TREE / "docs" / "architecture.md").read_text(encoding="utf-8")
    folders = {f"{name_of(path.parent)}/" for path in MODULES}
    assert [folder for folder in sorted(folders) if f"`{folder}" not in text] == []


def test_every_dependency_is_bound_above():
    loose = [
        str(requirement)
        for requirement in requirements()
        if not any(bound.operator in {"<", "=="} for bound in requirement.specifier)
    ]
    assert loose == []


def test_the_constraints_pin_what_the_bounds_allow_and_nothing_else_is_in_them():
    lines = (TREE / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9_.-]+==[\w.]+", line)] == []
    pinned = {
        canonicalize_name(name): version for name, version in (line.split("==") for line in lines)
    }
    unfit = [
        str(requirement)
        for requirement in requirements()
        if not requirement.specifier.contains(pinned.get(canonicalize_name(requirement.name), "0"))
    ]
    assert unfit == []


def test_the_makefile_has_few_verbs_and_says_what_each_does():
    text = (TREE / "Makefile").read_text(encoding="utf-8")
    phony = set(re.findall(r"^\.PHONY: (.+)$", text, re.MULTILINE)[0].split())
    told = set(re.findall(r"^([\w-]+):.*## \S", text, re.MULTILINE))
    assert told == phony
    assert len(told) <= MAX_VERBS
