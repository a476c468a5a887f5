"""Settings of workflows' own databases, and of a server without one: named, read once, and never shown."""

from typing import Any

import pytest

from smithers.foundation import worker_environment
from smithers.settings import InvalidSettings, ServerOptions, read_server_options

URL = "postgresql://me:hush@there/orders"


def problems(flags: dict[str, Any], environ: dict[str, str] | None = None) -> tuple[str, ...]:
    with pytest.raises(InvalidSettings) as caught:
        read_server_options(flags, environ or {})
    return caught.value.problems


def test_a_variable_with_a_database_url_is_a_database_that_workflows_may_name() -> None:
    environ = {
        "ORDERS": URL,
        "PLAIN": "postgres://there/plain",
        "DATABASE_URL": "postgresql://there/main",
        "DATABASE_DIRECT_URL": "postgresql://there/main",
        "SMITHERS_OTHER": URL,
        "SITE": "https://example.org",
        "TEXT": "//[not a url",
        "ODD-NAME": URL,
    }
    found = read_server_options({}, environ).workflow_databases
    assert found == {"ORDERS": URL, "PLAIN": "postgresql://there/plain"}


def test_a_flag_names_a_database_and_wins_over_the_variable() -> None:
    flags = {"workflow_databases": ["A=postgresql://there/a", "B=postgresql://there/b"]}
    options = read_server_options(flags, {"A": URL, "C": URL})
    assert options.workflow_databases == {
        "A": "postgresql://there/a",
        "B": "postgresql://there/b",
        "C": URL,
    }


@pytest.mark.parametrize(
    "text", ["hush", "=" + URL, "A B=" + URL, "A=mysql://me:hush@there/a", "A="]
)
def test_what_is_no_named_database_is_refused_and_not_quoted(text: str) -> None:
    (said,) = problems({"workflow_databases": [text]})
    assert said.startswith("--workflow-database: must be ")
    assert "hush" not in said


def test_one_name_has_one_url() -> None:
    twice = ["A=postgresql://there/a", "A=postgresql://there/b"]
    assert problems({"workflow_databases": twice}) == (
        "--workflow-database: gives one name two URLs",
    )
    same = read_server_options({"workflow_databases": twice[:1] * 2}, {})
    assert same.workflow_databases == {"A": "postgresql://there/a"}


def test_the_urls_are_in_no_repr() -> None:
    assert "hush" not in repr(ServerOptions(workflow_databases={"ORDERS": URL}))


def test_workers_do_not_see_a_database_url_with_a_password_whatever_its_name() -> None:
    environ = {
        "ORDERS": URL,
        "QUERY": "postgresql://there/x?user=me&password=hush",
        "PEER": "postgresql://there/x",
        "ODD": "//[not a url",
    }
    kept = worker_environment(environ, ())
    assert {name for name in environ if name in kept} == {"PEER", "ODD"}
    assert worker_environment(environ, ("ORDERS",))["ORDERS"] == URL


def test_without_a_database_the_variables_of_one_do_not_count() -> None:
    options = read_server_options({"no_database": True}, {"DATABASE_URL": URL})
    assert options.no_database
    assert options.database_url is None


def test_without_a_database_no_flag_may_speak_of_one() -> None:
    flags = {"no_database": True, "database_url": URL, "data_dir": "/tmp/unborn", "migrate": True}
    names = [problem.partition(":")[0] for problem in problems(flags)]
    assert names == ["--database-url", "--data-dir", "--migrate"]
