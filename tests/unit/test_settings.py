"""Settings: flags over environment over defaults, all that is wrong at once, and no secret in any text."""

from dataclasses import fields
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from gateway.settings import GatewaySettings, HttpProcessSettings
from smithers.cli.options import looking_options
from smithers.foundation import Database
from smithers.settings import (
    CLIENT_SETTINGS,
    DEFAULT_URL,
    SETTINGS,
    ClientOptions,
    InvalidSettings,
    Limits,
    ServerOptions,
    Setting,
    read_client_options,
    read_server_options,
)
from smithers.settings.limits import name_of_limit

TREE = Path(__file__).resolve().parents[2]
# Their defaults are nothing at all, or are what the host, the terminal or the place says.
TOLD_IN_WORDS = {
    "root_dir", "database_url", "database_direct_url", "workflow_databases", "data_dir", "auth_token", "tokens_file",
    "limits", "workers", "worker_memory_mib", "pass_env", "log_format", "token",
}  # fmt: skip


def problems(flags: dict[str, Any], environ: dict[str, str]) -> tuple[str, ...]:
    with pytest.raises(InvalidSettings) as caught:
        read_server_options(flags, environ)
    return caught.value.problems


def test_a_flag_wins_over_the_environment_and_that_over_the_default() -> None:
    environ = {"SMITHERS_LOG_LEVEL": "debug"}
    assert read_server_options({}, {}).log_level == "INFO"
    assert read_server_options({}, environ).log_level == "DEBUG"
    assert read_server_options({"log_level": "error"}, environ).log_level == "ERROR"


def test_a_commands_default_gives_way_and_what_it_has_fixed_does_not() -> None:
    defaults, fixed = {"workers": 1}, {"retention": None}
    environ = {"SMITHERS_RETENTION": "1s"}
    plain = read_server_options({}, environ, defaults=defaults, fixed=fixed)
    assert (plain.workers, plain.retention) == (1, None)
    flags = {"workers": "3", "retention": "2s"}
    told = read_server_options(flags, environ, defaults=defaults, fixed=fixed)
    assert (told.workers, told.retention) == (3, None)


def test_what_a_command_has_fixed_is_not_read() -> None:
    environ = {"SMITHERS_TOKENS_FILE": "/no/such/file"}
    assert read_server_options({}, environ, fixed={"tokens_file": None}).tokens_file is None


def test_a_command_that_serves_nobody_does_not_mind_the_variables_of_servers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("SMITHERS_TOKENS_FILE", "SMITHERS_RETENTION", "SMITHERS_LIMITS"):
        monkeypatch.setenv(name, "/no/such/file")
    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.setenv("DATABASE_DIRECT_URL", "postgresql://there:1/a")
    assert looking_options({"root_dir": None}).root_dir == Path.cwd()
    monkeypatch.setenv("DATABASE_URL", "postgresql://there/a")
    told = looking_options({"root_dir": None, "database_url": None})
    assert told.database_url == "postgresql://there/a"
    assert told.database_direct_url == "postgresql://there:1/a"


@pytest.mark.parametrize("text", ["0", "-1", "nan", "soon", "86401"])
@pytest.mark.parametrize("field", ["headers_timeout_s", "request_timeout_s"])
def test_a_request_has_some_time(field: str, text: str) -> None:
    (said,) = problems({field: text}, {})
    assert "must be a number of seconds above 0, up to 86400" in said
    assert read_server_options({"drain_timeout_s": "0"}, {}).drain_timeout_s == 0


def test_a_direct_url_of_the_environment_is_not_that_of_a_flags_database() -> None:
    environ = {
        "DATABASE_URL": "postgresql://prod/a",
        "DATABASE_DIRECT_URL": "postgresql://prod:1/a",
    }
    assert read_server_options({}, environ).database_direct_url == "postgresql://prod:1/a"
    flags = {"database_url": "postgresql://staging/a"}
    told = read_server_options(flags, environ)
    assert (told.database_url, told.database_direct_url) == ("postgresql://staging/a", None)
    both = read_server_options(
        {**flags, "database_direct_url": "postgresql://staging:1/a"}, environ
    )
    assert both.database_direct_url == "postgresql://staging:1/a"


def test_what_is_empty_is_as_good_as_not_given() -> None:
    options = read_server_options({"auth_token": "", "queues": []}, {"SMITHERS_API_KEY": ""})
    assert options.auth_token is None
    assert options.queues == ("default",)


@pytest.mark.parametrize("field", ["queues", "pass_env"])
def test_a_name_among_several_that_is_empty_is_refused(field: str) -> None:
    (said,) = problems({field: ["gpu", ""]}, {})
    assert "must be a word" in said


def test_every_bad_setting_is_reported_at_once_by_the_name_under_which_it_was_given() -> None:
    found = problems(
        {"port": "http", "workers": "-1", "root_dir": "/no/such/place"},
        {"SMITHERS_LOG_FORMAT": "xml", "SMITHERS_TOKENS_FILE": "/no/such/file"},
    )
    names = [problem.partition(":")[0] for problem in found]
    assert names == [
        "--root-dir",
        "--port",
        "SMITHERS_TOKENS_FILE",
        "--workers",
        "SMITHERS_LOG_FORMAT",
    ]
    assert "must be a whole number from 0 to 65535, not 'http'" in found[1]


def test_a_secret_is_in_no_error_and_no_repr() -> None:
    environ = {"DATABASE_URL": "mysql://me:hush@there/db", "SMITHERS_API_KEY": "hush hush"}
    assert "hush" not in "".join(problems({}, environ))
    options = read_server_options(
        {"auth_token": "hush"}, {"DATABASE_URL": "postgresql://me:hush@there/db"}
    )
    assert "hush" not in repr(options)
    assert "hush" not in repr(ClientOptions(token="hush"))


def test_a_password_and_a_collectors_key_are_in_no_repr_of_a_servers_parts() -> None:
    dsn = "postgresql://me:hush@there/db"
    assert "hush" not in repr(Database(dsn=dsn, direct_dsn=dsn))
    told = HttpProcessSettings(
        gateway=GatewaySettings(dsn=dsn, direct_dsn=dsn, root_dir=None, auth_token="hush"),
        listener_fd=3,
        sheet_fd=4,
        otel={"OTEL_EXPORTER_OTLP_HEADERS": "key=hush"},
        log_format="json",
        log_level="INFO",
    )
    assert "hush" not in repr(told)
    assert HttpProcessSettings.from_json(told.to_json()) == told


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("postgresql://me:hush/hush@there/name", "%XX"),
        ("postgresql://me:hush@there:port/name", "a port from 1 to 65535"),
        ("postgresql://me:hush@there/name?sslmode=on", "an sslmode of disable, "),
    ],
)
def test_a_bad_database_url_is_told_by_what_is_wrong_and_not_quoted(url: str, told: str) -> None:
    (said,) = problems({}, {"DATABASE_URL": url})
    assert said.startswith("DATABASE_URL: must ")
    assert told in said
    assert "hush" not in said


def test_the_data_never_lie_below_the_root(tmp_path: Path) -> None:
    found = problems({"root_dir": str(tmp_path), "data_dir": str(tmp_path / "data")}, {})
    assert found == ("--data-dir: must not lie below the root, where tasks can reach it",)


def test_a_loop_of_links_is_no_directory(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    found = problems({"root_dir": str(tmp_path), "data_dir": str(loop)}, {})
    assert found == (f"--data-dir: must not lead through too many links, not '{loop}'",)


def test_the_tokens_never_lie_below_the_root(tmp_path: Path) -> None:
    (tmp_path / "tokens").touch()
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "tokens").touch()
    root = str(tmp_path / "root")
    beside = read_server_options({"root_dir": root, "tokens_file": f"{root}/../tokens"}, {})
    assert beside.tokens_file == tmp_path / "tokens"
    found = problems({"root_dir": root}, {"SMITHERS_TOKENS_FILE": f"{root}/../root/tokens"})
    assert found == ("--tokens-file: must not lie below the root, where tasks can reach it",)


@pytest.mark.parametrize(
    ("flags", "environ", "name"),
    [
        ({"data_dir": "/tmp/smithers-unborn"}, {"DATABASE_URL": "postgresql://h/d"}, "--data-dir"),
        ({}, {"DATABASE_DIRECT_URL": "postgresql://h/d"}, "DATABASE_DIRECT_URL"),
    ],
)
def test_settings_that_contradict_one_another_are_refused(
    flags: dict[str, Any], environ: dict[str, str], name: str
) -> None:
    assert [problem.partition(":")[0] for problem in problems(flags, environ)] == [name]


def test_repeated_flags_gather_and_count_once() -> None:
    options = read_server_options({"queues": ["a", "b", "a"]}, {})
    assert options.queues == ("a", "b")


@pytest.mark.parametrize("url", ["http://[::1]:80", "https://example.org/base/"])
def test_a_servers_url_is_taken(url: str) -> None:
    assert read_client_options({}, {"SMITHERS_URL": url}).url == url.rstrip("/")


@pytest.mark.parametrize("url", ["example.org", "ftp://example.org", "http://", "http://h:port"])
def test_what_is_no_url_of_a_server_is_refused(url: str) -> None:
    with pytest.raises(InvalidSettings, match="--server"):
        read_client_options({"url": url}, {})


def test_without_settings_a_command_speaks_to_this_host() -> None:
    assert read_client_options({}, {}) == ClientOptions(url=DEFAULT_URL, token=None)


@pytest.mark.parametrize(
    ("table", "options"), [(SETTINGS, ServerOptions), (CLIENT_SETTINGS, ClientOptions)]
)
def test_every_setting_is_a_field(table: tuple[Setting, ...], options: type) -> None:
    fields = set(options.__dataclass_fields__)  # type: ignore[attr-defined]  # of a dataclass
    assert {setting.field for setting in table} <= fields


def test_the_defaults_that_people_are_told_are_the_defaults() -> None:
    for setting in (*SETTINGS, *CLIENT_SETTINGS):
        options = ServerOptions() if setting in SETTINGS else ClientOptions()
        default = getattr(options, setting.field)
        if not setting.metavar:  # a switch
            assert (default, setting.default.partition(";")[0]) == (False, "off")
        elif setting.field not in TOLD_IN_WORDS:
            told = setting.read(setting.default)
            assert default == ((told,) if setting.is_many else told), setting.flag


def test_the_doc_has_every_limit_as_it_is() -> None:
    text = (TREE / "docs" / "settings.md").read_text(encoding="utf-8")
    for limit in fields(Limits):
        row = f"| `{name_of_limit(limit.name)}` | {limit.default} | {limit.metadata['told']} |"
        assert row in text, f"docs/settings.md lacks:\n{row}"


def test_the_doc_has_every_setting_as_it_is() -> None:
    text = (TREE / "docs" / "settings.md").read_text(encoding="utf-8")
    for setting in (*SETTINGS, *CLIENT_SETTINGS):
        variable = f"`{setting.env}`" if setting.env else ""
        default = setting.default.replace("|", "\\|")
        row = f"| `{setting.flag}` | {variable} | {default} | {setting.help} |"
        assert row in text, f"docs/settings.md lacks:\n{row}"


def test_what_the_table_says_of_a_default_is_what_holds() -> None:
    options, checked = ServerOptions(), set()
    for setting in SETTINGS:
        try:
            said = setting.read(setting.default)
        except (ValueError, TypeError):
            continue  # in words, e.g. one for each processor
        if isinstance(said, int | float | timedelta):
            checked.add(setting.field)
            assert getattr(options, setting.field) == said, setting.field
    assert {"port", "runs_per_worker", "drain_timeout_s", "retention"} <= checked
