"""The leaf that does work."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Generic

from typing_extensions import TypeVar

from smithers.durations import Duration
from smithers.errors import InvalidTree
from smithers.tree.asks import REPAIRS, Ask
from smithers.tree.checks import (
    check_count,
    check_duration,
    check_id,
    check_kind,
    check_mapping,
    check_names,
    check_text,
    check_truth,
    check_work,
)
from smithers.tree.policies import Cache, Retry
from smithers.tree.reprs import show_id

Output = TypeVar("Output", default=Any)

_DEFAULT_RETRY: Final = Retry()
_NOTHING: Final[Any] = object()  # None is an ordinary value


class Task(Generic[Output]):
    """A leaf that does work: a callable (sync: in a thread; async: awaited), a plain value, or a question to an agent."""

    __slots__ = (
        "ask",
        "cache",
        "continue_on_fail",
        "depends_on",
        "do",
        "heartbeat_timeout_s",
        "id",
        "label",
        "meta",
        "needs",
        "needs_approval",
        "output",
        "retries",
        "retry",
        "skip_if",
        "timeout_s",
    )

    def __init__(
        self,
        id: str,
        do: Callable[..., Awaitable[Output]] | Callable[..., Output] | Output = _NOTHING,
        *,
        agent: Any = None,
        prompt: str | Callable[..., Any] | None = None,
        tools: Sequence[Any] = (),
        repairs: int = REPAIRS,
        stream: bool = False,
        output: type[Output] | None = None,
        needs: Mapping[str, str] | None = None,
        depends_on: Iterable[str] = (),
        retries: int = 0,
        retry: Retry | None = None,
        timeout: Duration | None = None,
        heartbeat_timeout: Duration | None = None,
        cache: Cache | None = None,
        continue_on_fail: bool = False,
        skip_if: object = False,
        needs_approval: bool = False,
        label: str | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> None:
        """Describe a task.

        `output`: the model that the result must fit; default: the function's return annotation, else any JSON. `needs`:
        argument name to node id: waits for those nodes and passes their outputs, each as the model that produced it,
        else as the argument is annotated; if one of them was skipped or failed, this task is skipped. `depends_on`:
        waits only. `retries`: attempts after the first. `timeout`: of one attempt. `heartbeat_timeout`: between two
        heartbeats of an attempt. `cache`: reuses the output of an earlier execution. `continue_on_fail`: the tree
        goes on after a failure. `needs_approval`: a person must approve first.

        `agent` instead of `do`: a pydantic-ai agent, or a `smithers.agents.Agent`; of several, the next is asked when one
        raises. `prompt`: a text, or a function of what the task `needs`. `tools`: given to the agent in addition to its own.
        `repairs`: how often an answer that does not fit `output` is returned to the agent. `stream`: emit the text of
        pydantic-ai models as events of the run while they produce it.
        """
        self.id = check_id(id, "Task")
        self.do = None if do is _NOTHING else check_work(do, f"Task({id!r})")
        self.ask = None
        if agent is not None or prompt is not None or tools:
            self.ask = Ask.of(
                agent,
                prompt,
                tools=tools,
                repairs=repairs,
                is_streamed=stream,
                where=f"Task({id!r})",
            )
            if do is not _NOTHING:
                raise InvalidTree(f"Task({id!r}) has both something to do and an agent")
            if needs and not callable(prompt):
                raise InvalidTree(
                    f"Task({id!r}): a prompt that is a text takes nothing from needs=...: use a function"
                )
        elif do is _NOTHING:
            raise InvalidTree(f"Task({id!r}) has nothing to do: a function, a value or an agent")
        self.output = output
        self.needs = check_mapping(needs, f"Task({id!r}, needs=...)")
        check_names(self.needs.values(), f"Task({id!r}, needs=...)")
        self.depends_on = check_names(depends_on, f"Task({id!r}, depends_on=...)")
        self.retries = check_count(retries, f"Task({id!r}, retries=...)", least=0)
        self.retry = check_kind(Retry, retry or _DEFAULT_RETRY, f"Task({id!r}, retry=...)")
        self.timeout_s = check_duration(timeout, f"Task({id!r}, timeout=...)")
        self.heartbeat_timeout_s = check_duration(
            heartbeat_timeout, f"Task({id!r}, heartbeat_timeout=...)"
        )
        if self.heartbeat_timeout_s == 0:
            raise InvalidTree(f"Task({id!r}, heartbeat_timeout=0) would never live")
        self.cache = cache and check_kind(Cache, cache, f"Task({id!r}, cache=...)")
        self.continue_on_fail = continue_on_fail
        self.skip_if = check_truth(skip_if, f"Task({id!r}, skip_if=...)")
        self.needs_approval = needs_approval
        self.label = check_text(label, f"Task({id!r}, label=...)")
        self.meta = check_mapping(meta, f"Task({id!r}, meta=...)")

    __repr__ = show_id
