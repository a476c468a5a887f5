"""Read the `OTEL_*` variables that this package implements; the exporters read theirs themselves."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from smithers.errors import SmithersError

OTEL_PREFIX: Final = "OTEL_"
EXPORTERS: Final = ("otlp", "none")
PROTOCOLS: Final = ("http/protobuf", "grpc")
SAMPLERS: Final = (
    "parentbased_always_on",  # the default
    "parentbased_always_off",
    "parentbased_traceidratio",
    "always_on",
    "always_off",
    "traceidratio",
)
DELAY_S: Final = 1.0  # a killed process loses its spans of this time; an export costs 2 ms
MAX_QUEUE: Final = 8_192
MAX_BATCH: Final = 2_048


class InvalidTelemetry(SmithersError):
    """The `OTEL_*` variables ask for something unsupported."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SendingSettings:
    """How spans leave a process."""

    is_disabled: bool
    is_grpc: bool
    delay_s: float
    max_queue: int
    max_batch: int


def read_settings(given: Mapping[str, str]) -> SendingSettings:
    """Read them; raises InvalidTelemetry, which names the variable."""
    variables = keep_set(given)
    _check_sampler(variables)
    has_exporter = _one_of(variables, "OTEL_TRACES_EXPORTER", EXPORTERS) != "none"
    return SendingSettings(
        is_disabled=variables.get("OTEL_SDK_DISABLED", "").lower() == "true" or not has_exporter,
        is_grpc=_protocol(variables) == "grpc",
        delay_s=_number(variables, "OTEL_BSP_SCHEDULE_DELAY", DELAY_S * 1_000) / 1_000,
        max_queue=_count(variables, "OTEL_BSP_MAX_QUEUE_SIZE", MAX_QUEUE),
        max_batch=_count(variables, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", MAX_BATCH),
    )


def keep_set(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that are set, with their values stripped: an empty one is unset."""
    return {name: value.strip() for name, value in variables.items() if value.strip()}


def _protocol(variables: Mapping[str, str]) -> str:
    name = "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"
    if name not in variables:
        name = "OTEL_EXPORTER_OTLP_PROTOCOL"
    return _one_of(variables, name, PROTOCOLS)


def _check_sampler(variables: Mapping[str, str]) -> None:
    """Refuse values that the library would silently replace by defaults."""
    sampler = _one_of(variables, "OTEL_TRACES_SAMPLER", SAMPLERS)
    ratio = variables.get("OTEL_TRACES_SAMPLER_ARG", "1")
    if sampler.endswith("traceidratio") and not 0 <= _to_float(ratio) <= 1:
        raise InvalidTelemetry(
            f"OTEL_TRACES_SAMPLER_ARG: must be a number from 0 to 1, not {ratio!r}"
        )


def _one_of(variables: Mapping[str, str], name: str, known: tuple[str, ...]) -> str:
    value = variables.get(name, known[0])
    if value.lower() not in known:
        raise InvalidTelemetry(f"{name}: must be one of {', '.join(known)}, not {value!r}")
    return value.lower()


def _count(variables: Mapping[str, str], name: str, default: int) -> int:
    text = variables.get(name, str(default))
    if not (text.isdecimal() and 1 <= _to_float(text) < 1e9):
        raise InvalidTelemetry(f"{name}: must be a whole number from 1, not {text!r}")
    return int(text)


def _number(variables: Mapping[str, str], name: str, default: float) -> float:
    text = variables.get(name, str(default))
    value = _to_float(text)
    if not 0 < value < 1e9:
        raise InvalidTelemetry(f"{name}: must be a number above 0, not {text!r}")
    return value


def _to_float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
