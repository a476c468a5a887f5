"""Read those of OpenTelemetry's `OTEL_*` variables that are ours to follow; the exporters read theirs themselves."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from smithers.errors import SmithersError

PROTOCOLS: Final = ("http/protobuf", "grpc")
DELAY_S: Final = 1.0  # what ended within it is lost with a process that is killed; an export costs 2 ms, however small
MAX_QUEUE: Final = 8_192
MAX_BATCH: Final = 2_048


class InvalidTelemetry(SmithersError):
    """The `OTEL_*` variables ask for what is not there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SendingSettings:
    """How spans leave a process."""

    is_disabled: bool
    is_grpc: bool
    delay_s: float
    max_queue: int
    max_batch: int


def read_settings(variables: Mapping[str, str]) -> SendingSettings:
    """Read them; raises InvalidTelemetry, which names the variable."""
    return SendingSettings(
        is_disabled=variables.get("OTEL_SDK_DISABLED", "").lower() == "true"
        or variables.get("OTEL_TRACES_EXPORTER") == "none",
        is_grpc=_protocol(variables) == "grpc",
        delay_s=_number(variables, "OTEL_BSP_SCHEDULE_DELAY", DELAY_S * 1_000) / 1_000,
        max_queue=int(_number(variables, "OTEL_BSP_MAX_QUEUE_SIZE", MAX_QUEUE)),
        max_batch=int(_number(variables, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", MAX_BATCH)),
    )


def _protocol(variables: Mapping[str, str]) -> str:
    name = "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"
    if name not in variables:
        name = "OTEL_EXPORTER_OTLP_PROTOCOL"
    protocol = variables.get(name) or PROTOCOLS[0]
    if protocol not in PROTOCOLS:
        raise InvalidTelemetry(f"{name}: must be one of {', '.join(PROTOCOLS)}, not {protocol!r}")
    return protocol


def _number(variables: Mapping[str, str], name: str, default: float) -> float:
    text = variables.get(name) or str(default)
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 < value < 1e9:
        raise InvalidTelemetry(f"{name}: must be a number above 0, not {text!r}")
    return value
