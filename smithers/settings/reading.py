"""Read all settings at once: flags over environment over defaults, every invalid one reported by its name."""

import sys
from collections.abc import Container, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from smithers.errors import SmithersError
from smithers.settings.limits import Limits
from smithers.settings.options import ClientOptions, ServerOptions
from smithers.settings.parsing import named_database
from smithers.settings.table import CLIENT_SETTINGS, SETTINGS, Setting

NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})
EVERY_FIELD: Final = frozenset(setting.field for setting in SETTINGS)
KEPT_FROM_TASKS: Final = MappingProxyType(
    {"data_dir": "--data-dir", "tokens_file": "--tokens-file"}
)
OF_A_DATABASE: Final = frozenset({"database_url", "database_direct_url", "data_dir", "migrate"})


class InvalidSettings(SmithersError):
    """Some settings are invalid; `problems` has a line for each."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)


def read_server_options(
    flags: Mapping[str, Any],
    environ: Mapping[str, str],
    *,
    used: Container[str] = EVERY_FIELD,
    defaults: Mapping[str, Any] = NOTHING,
    fixed: Mapping[str, Any] = NOTHING,
) -> ServerOptions:
    """Read a server's settings; raise InvalidSettings with all errors.

    All by field. `flags`: None if not given; `used`: the only settings that the command reads; `defaults`: the command's
    own; `fixed`: values that nothing overrides.
    """
    # The environment's direct URL goes with the environment's database.
    if flags.get("database_url"):
        environ = {name: text for name, text in environ.items() if name != "DATABASE_DIRECT_URL"}
    read = [one for one in SETTINGS if one.field in used and one.field not in fixed]
    values, problems = _read(read, flags, environ)
    values = {**defaults, **values, **fixed}
    values["limits"] = Limits(**dict(chain.from_iterable(values.get("limits", ()))))
    values.setdefault("log_format", "pretty" if sys.stderr.isatty() else "json")
    root = values.setdefault("root_dir", Path.cwd())
    for field, flag in KEPT_FROM_TASKS.items():
        if (path := values.get(field)) is not None and path.is_relative_to(root):
            problems.append(f"{flag}: must not lie below the root, where tasks can reach it")
    data_dir = values.get("data_dir")
    if values.get("no_database"):
        problems += _contradictions(flags)
        values = {name: value for name, value in values.items() if name not in OF_A_DATABASE}
    named = values.get("workflow_databases", ())
    if len(dict(named)) < len(named):
        problems.append("--workflow-database: gives one name two URLs")
    values["workflow_databases"] = {**_databases_in(environ), **dict(named)}
    if data_dir is not None and "database_url" in values:
        problems.append("--data-dir: is for the embedded Postgres, and DATABASE_URL is set")
    if "database_direct_url" in values and "database_url" not in values:
        problems.append("DATABASE_DIRECT_URL: is set, and DATABASE_URL is not")
    if problems:
        raise InvalidSettings(problems)
    return ServerOptions(**values)


def read_client_options(flags: Mapping[str, Any], environ: Mapping[str, str]) -> ClientOptions:
    """Read an operating command's settings; raise InvalidSettings with all errors."""
    values, problems = _read(CLIENT_SETTINGS, flags, environ)
    if problems:
        raise InvalidSettings(problems)
    return ClientOptions(**values)


def _contradictions(flags: Mapping[str, Any]) -> list[str]:
    """Name the flags of a database that contradict --no-database; variables are ignored."""
    given = [
        setting.flag
        for setting in SETTINGS
        if setting.field in OF_A_DATABASE and flags.get(setting.field)
    ]
    return [f"{flag}: goes with a database, and --no-database is given" for flag in given]


def _databases_in(environ: Mapping[str, str]) -> dict[str, str]:
    """Find the variables with the URL of a Postgres: a workflow may name any but the server's own."""
    found: dict[str, str] = {}
    for name, value in environ.items():
        if not name.startswith("SMITHERS_") and name not in {"DATABASE_URL", "DATABASE_DIRECT_URL"}:
            with suppress(ValueError):
                found.update([named_database(f"{name}={value}")])
    return found


def _read(
    table: Sequence[Setting], flags: Mapping[str, Any], environ: Mapping[str, str]
) -> tuple[dict[str, Any], list[str]]:
    values: dict[str, Any] = {}
    problems: list[str] = []
    for setting in table:
        name, given = _find(setting, flags, environ)
        try:
            read = [setting.read(text) for text in given]
        except ValueError as error:
            quoted = "" if setting.is_secret else f", not {' '.join(given)!r}"
            problems.append(f"{name}: {error}{quoted}")
            continue
        if read:
            values[setting.field] = tuple(dict.fromkeys(read)) if setting.is_many else read[0]
    return values, problems


def _find(
    setting: Setting, flags: Mapping[str, Any], environ: Mapping[str, str]
) -> tuple[str, list[str]]:
    """Return the name under which a setting was given, and its value; an empty text counts as absent."""
    given = flags.get(setting.field)
    if given:
        texts = ["true"] if given is True else list(given) if setting.is_many else [given]
        return setting.flag, texts
    text = environ.get(setting.env, "") if setting.env else ""
    return setting.env or setting.flag, [text] if text else []
