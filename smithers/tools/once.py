"""Calls that are made once: an answer that an attempt got before its process died is not requested again."""

from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

from pydantic_core import from_json

from smithers.errors import SmithersError
from smithers.outputs import decode_output, encode_output
from smithers.telemetry.tracing import TOOL, span
from smithers.tools.errors import ToolError
from smithers.tools.toolbox import CALL, CallStart, PreviousCall, find_toolbox

EXECUTE_TOOL: Final = "execute_tool"

Result = TypeVar("Result")


async def make(
    start: CallStart, body: Callable[[], Awaitable[Result]], *, until_kept: bool = False
) -> tuple[Result, str]:
    """Make a call, and record it; `until_kept`: return when its end is committed.

    Returns the result, and its recorded JSON text.
    """
    box = find_toolbox()
    call = await box.begin(start)
    within = CALL.set(call)
    try:
        result = await _perform(start, body)
        output = encode_output(result)
    except BaseException as error:
        until_kept = until_kept and isinstance(error, Exception)  # a cancelled caller does not wait
        kept = box.finish(call.call_no, output=None, error=error, until_kept=until_kept)
        if until_kept:
            await kept
        raise
    finally:
        CALL.reset(within)
    kept = box.finish(call.call_no, output=output, error=None, until_kept=until_kept)
    if until_kept:
        await kept
    return result, output


async def _perform(start: CallStart, body: Callable[[], Awaitable[Result]]) -> Result:
    """Make a call, in a span if it is a tool's: a question to a model emits its own, with its usage."""
    if start.kind == "model":
        return await body()
    attributes = {"gen_ai.operation.name": EXECUTE_TOOL, "gen_ai.tool.name": start.tool_name}
    with span(TOOL, attributes):
        return await body()


async def make_once(start: CallStart, body: Callable[[], Awaitable[Any]]) -> Any:
    """Make a call unless an attempt that died has made it; return its output as plain JSON, once that is committed.

    Raises ToolError if that attempt's call failed, or may have had effects that cannot be repeated, and
    SmithersError if it broke.
    """
    made = await find_toolbox().recall(start)
    if made is not None:
        return _read(made)
    _, output = await make(start, body, until_kept=True)
    return decode_output(output)


def _read(made: PreviousCall) -> Any:
    if made.error is not None:
        error = from_json(made.error)
        kind = ToolError if "code" in error else SmithersError  # foreign exceptions have no code
        raise kind(error["message"])
    assert made.output is not None
    return decode_output(made.output)
