"""A tool: a function with a name, a description, validated parameters and a record of its calls."""

import functools
import inspect
from collections.abc import Awaitable, Callable, Generator, Mapping
from typing import Any, Generic, ParamSpec, TypeVar, cast, overload

from pydantic import PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import ArgsKwargs

from smithers.errors import InvalidOutput, SmithersError
from smithers.outputs import encode_output
from smithers.tools.errors import InvalidToolInput
from smithers.tools.once import make, make_once
from smithers.tools.toolbox import CallStart, find_toolbox

P = ParamSpec("P")
R = TypeVar("R")


class Tool(Generic[P, R]):
    """A function that a task's body, or a model, may call.

    `tool(...)` returns a Call: await it in an async body, call its `result()` in a sync one.
    """

    def __init__(
        self,
        function: Callable[P, Awaitable[R]] | Callable[P, R],
        *,
        name: str | None = None,
        side_effect: bool = True,
        idempotent: bool = False,
    ) -> None:
        """Make a tool of a function with typed parameters, whose docstring is the description."""
        self.name = name or function.__name__
        self.description = inspect.getdoc(function) or ""
        self.is_side_effect = side_effect
        self.is_idempotent = idempotent or not side_effect
        self._function = function
        self._signature = inspect.signature(function)
        if not self.description:
            raise SmithersError(f"the tool {self.name} needs a docstring: it is what a model reads")
        try:
            self._adapter: TypeAdapter[Any] = TypeAdapter(cast("Any", _echo(function)))
            self.parameters: dict[str, Any] = self._adapter.json_schema()
        except PydanticUserError as error:
            raise SmithersError(
                f"the parameters of the tool {self.name} have no schema: {error}"
            ) from error

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> "Call[R]":
        """Create a call; nothing happens before it is awaited or its `result()` is called."""
        return Call(self, args, kwargs)

    def prepare(self, arguments: Mapping[str, Any]) -> "Call[R]":
        """Create a call from arguments by name, as a model gives them."""
        return Call(self, (), dict(arguments))

    def check(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return arguments converted to the parameters' types; raise InvalidToolInput with all errors."""
        try:
            return cast(
                "tuple[tuple[Any, ...], dict[str, Any]]",
                self._adapter.validate_python(ArgsKwargs(args, kwargs)),
            )
        except ValidationError as error:
            misfits = "; ".join(
                f"{'.'.join(map(str, misfit['loc'])) or 'arguments'}: {misfit['msg']}"
                for misfit in error.errors(include_url=False, include_input=False)
            )
            raise InvalidToolInput(f"{self.name}: {misfits}") from None

    async def perform(self, call: "Call[R]") -> R:
        """Make a call, and record it."""
        find_toolbox().note_made(call)
        start, body = self._prepare(call)
        result, _ = await make(start, body)
        return result

    async def perform_once(self, call: "Call[R]") -> Any:
        """Make a call unless an attempt that died has made it: see smithers.tools.once."""
        find_toolbox().note_made(call)
        return await make_once(*self._prepare(call))

    def _prepare(self, call: "Call[R]") -> tuple[CallStart, Callable[[], Awaitable[R]]]:
        args, kwargs = self.check(call.args, call.kwargs)
        start = CallStart(
            tool_name=self.name,
            input=self._write_input(args, kwargs),
            is_side_effect=self.is_side_effect,
            is_idempotent=self.is_idempotent,
        )
        return start, functools.partial(self._run, args, kwargs)

    def _write_input(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        given = dict(self._signature.bind(*args, **kwargs).arguments)
        try:
            return encode_output(given, what="the input")
        except InvalidOutput as error:
            raise InvalidToolInput(f"{self.name}: {error}") from None

    async def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> R:
        if inspect.iscoroutinefunction(self._function):
            return cast("R", await self._function(*args, **kwargs))
        bound = functools.partial(self._function, *args, **kwargs)
        return cast("R", await find_toolbox().run_in_thread(bound))


class Call(Generic[R]):
    """One call of a tool, not made yet: `await call`, or `call.result()` in a body that is not async."""

    def __init__(self, tool: Tool[..., R], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.tool = tool
        self.args = args
        self.kwargs = kwargs
        find_toolbox().note_written(self)

    def __await__(self) -> Generator[Any, None, R]:
        """Make the call."""
        return self.tool.perform(self).__await__()

    def __repr__(self) -> str:
        given = [repr(value) for value in self.args]
        given += [f"{name}={value!r}" for name, value in self.kwargs.items()]
        return f"{self.tool.name}({', '.join(given)})"[:200]

    def result(self) -> R:
        """Make the call, and block until it is done: for a body that is a plain function."""
        return find_toolbox().wait_for(self.tool.perform(self))


@overload
def tool(function: Callable[P, Awaitable[R]], /) -> Tool[P, R]: ...
@overload
def tool(function: Callable[P, R], /) -> Tool[P, R]: ...
@overload
def tool(
    *, name: str | None = None, side_effect: bool = True, idempotent: bool = False
) -> "_Decorator": ...
def tool(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    side_effect: bool = True,
    idempotent: bool = False,
) -> Any:
    """Make a tool of a function, async or not.

    `side_effect=False`: it is read-only. `idempotent=True`: repeating it has no further effect. If it is neither, its start
    is committed before it runs, and `previous_calls()` lists it for later attempts.
    """
    decorate = _Decorator(name, side_effect, idempotent)
    return decorate if function is None else decorate(function)


class _Decorator:
    """`tool` with its options."""

    def __init__(self, name: str | None, side_effect: bool, idempotent: bool) -> None:
        self._options = {"name": name, "side_effect": side_effect, "idempotent": idempotent}

    @overload
    def __call__(self, function: Callable[P, Awaitable[R]], /) -> Tool[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Tool[P, R]: ...
    def __call__(self, function: Callable[..., Any], /) -> Any:
        return Tool(function, **cast("dict[str, Any]", self._options))


def _echo(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function with the same parameters that returns its arguments, for pydantic to validate."""

    @functools.wraps(function)
    def echo(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, kwargs

    return echo
