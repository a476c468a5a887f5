"""What workflow code can do to the process that it runs in, and how its own run must end for it.

Each harm is the source of a workflow whose run has one end that is right: an error by its name or code, or none where
no harm was done. hostile.py measures what the others pay; tests/faults/test_hostile.py holds the ends.
"""

from dataclasses import dataclass
from textwrap import dedent, indent
from typing import Final

FINISHED: Final = "finished"  # else the code, or the name, of the run's error

HEAD: Final = """\
import asyncio, ctypes, faulthandler, gc, io, itertools, json, locale, math, os, random, re
import builtins, resource, signal, socket, subprocess, sys, threading, time
from typing import Any
from pydantic import BaseModel, field_serializer
from smithers import Parallel, Sequence, Task, Timer, current_task, workflow
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Harm:
    """A workflow that harms, and how its run must end."""

    name: str
    source: str
    end: str
    is_slow: bool = False  # seen only after 20 s of silence, three times over, or a minute


def at_import(name: str, end: str, code: str, *, is_slow: bool = False) -> Harm:
    """Make a harm that is done when the module is loaded."""
    tail = '\n@workflow\ndef hostile(ctx):\n    return Task("harm", 1)\n'
    source = HEAD + dedent(code) + tail
    return Harm(name=f"import: {name}", source=source, end=end, is_slow=is_slow)


def in_body(name: str, end: str, code: str, *, options: str = "", is_slow: bool = False) -> Harm:
    """Make a harm of a task's body: the function `harm`; `options`: of its Task."""
    tail = f'\n@workflow\ndef hostile(ctx):\n    return Task("harm", harm, {options})\n'
    return Harm(name=name, source=HEAD + dedent(code) + tail, end=end, is_slow=is_slow)


def in_builder(
    name: str, end: str, code: str, *, timeout_s: int = 30, is_slow: bool = False
) -> Harm:
    """Make a harm of a builder, by its lines."""
    head = f"\n@workflow(render_timeout={timeout_s})\ndef hostile(ctx):\n"
    source = HEAD + head + indent(dedent(code), "    ")
    return Harm(name=f"builder: {name}", source=source, end=end, is_slow=is_slow)


def in_model(name: str, end: str, line: str) -> Harm:
    """Make a harm of the model that a run's input is held against, by a line of its validator."""
    source = f"""
from pydantic import model_validator

class Given(BaseModel):
    @model_validator(mode="before")
    @classmethod
    def look(cls, given):
        {line}

@workflow(input=Given, render_timeout=0.5)
def hostile(ctx):
    return Task("harm", 1)
"""
    return Harm(name=f"model: {name}", source=HEAD + source, end=end)


def _plain(name: str, end: str, line: str, *, options: str = "", is_slow: bool = False) -> Harm:
    return in_body(name, end, f"def harm():\n    {line}", options=options, is_slow=is_slow)


def _async(name: str, end: str, line: str, *, options: str = "", is_slow: bool = False) -> Harm:
    return in_body(name, end, f"async def harm():\n    {line}", options=options, is_slow=is_slow)


IMPORTS: Final = (
    at_import("raises", "SOURCE_BROKEN", "1 / 0"),
    at_import("sys.exit", "SOURCE_BROKEN", "sys.exit(3)"),
    at_import("KeyboardInterrupt", "SOURCE_BROKEN", "raise KeyboardInterrupt"),
    at_import("os._exit", "WORKER_CRASHED", "os._exit(0)"),
    at_import("a segfault", "WORKER_CRASHED", "ctypes.string_at(0)"),
    at_import("waits for ever", "SOURCE_BROKEN", "threading.Event().wait()", is_slow=True),
    at_import("an endless loop", "SOURCE_BROKEN", "while True: pass", is_slow=True),
    at_import("prints 20 MB", FINISHED, 'for _ in range(20): print("x" * 1_000_000)'),
    at_import(
        "50 threads that stay",
        FINISHED,
        "for _ in range(50): threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()",
    ),
    at_import("os.fork", FINISHED, "os.fork()"),
    at_import("closes every descriptor", "WORKER_CRASHED", "os.closerange(3, 20_000)"),
)

ENDS: Final = (
    _plain("raises", "ZeroDivisionError", "1 / 0"),
    _async("raises BaseException", "BaseException", 'raise BaseException("no")'),
    _async("raises KeyboardInterrupt", "KeyboardInterrupt", "raise KeyboardInterrupt"),
    _plain("raises KeyboardInterrupt in a thread", "KeyboardInterrupt", "raise KeyboardInterrupt"),
    _async("raises GeneratorExit", "GeneratorExit", "raise GeneratorExit"),
    _async("raises a CancelledError", "CancelledError", "raise asyncio.CancelledError"),
    _plain("raises a CancelledError in a thread", "CancelledError", "raise asyncio.CancelledError"),
    _async("raises StopIteration", "RuntimeError", "raise StopIteration(5)"),
    _plain("raises StopIteration in a thread", "RuntimeError", "raise StopIteration(5)"),
    _async("sys.exit", "SystemExit", "sys.exit(3)"),
    _plain("sys.exit in a thread", "SystemExit", "sys.exit(3)"),
    in_body(
        "sys.exit in a task of its own",
        "RuntimeError",
        """
        async def leave():
            sys.exit(3)
        async def harm():
            await asyncio.gather(leave())
        """,
    ),
    in_body(
        "an exception whose text raises",
        "Mute",
        """
        class Mute(Exception):
            def __str__(self):
                raise SystemExit
            __repr__ = __str__
        async def harm():
            raise Mute
        """,
    ),
    in_body(
        "an exception of 100 MB",
        "ValueError",
        'def harm(): raise ValueError("x" * 100_000_000)',
    ),
    in_body(
        "a chain of 20,000 exceptions",
        "ValueError",
        """
        def harm():
            error = None
            for number in range(20_000):
                following = ValueError(number)
                following.__cause__ = error
                error = following
            raise error
        """,
    ),
    _plain("os._exit", "WORKER_CRASHED", "os._exit(0)"),
    _plain("a segfault", "WORKER_CRASHED", "ctypes.string_at(0)"),
    _plain(
        "a segfault after 3 s",
        "WORKER_CRASHED",
        "time.sleep(3); ctypes.string_at(0)",
        is_slow=True,
    ),
    _plain("os.abort", "WORKER_CRASHED", "os.abort()"),
    _plain("kill -9 of itself", "WORKER_CRASHED", "os.kill(os.getpid(), 9)"),
)

OUTPUTS: Final = (
    _plain("returns NaN", "INVALID_OUTPUT", "return math.nan"),
    _async("returns Infinity", "INVALID_OUTPUT", "return [math.inf]"),
    _plain("returns a NUL", FINISHED, 'return "\\0"'),
    _plain("returns half a surrogate pair", "INVALID_OUTPUT", 'return "\\ud800"'),
    _plain("returns 100 MB", "INVALID_OUTPUT", 'return "x" * 100_000_000'),
    _async("returns 100 GB of one text", "INVALID_OUTPUT", 'return ["x" * 1_000_000] * 100_000'),
    in_body(
        "returns a billion leaves",
        "INVALID_OUTPUT",
        """
        async def harm():
            value = [1] * 10
            for _ in range(9): value = [value] * 10
            return value
        """,
    ),
    in_body(
        "returns 20,000 levels",
        "INVALID_OUTPUT",
        """
        async def harm():
            value = []
            for _ in range(20_000): value = [value]
            return value
        """,
    ),
    in_body(
        "returns a cycle",
        "INVALID_OUTPUT",
        """
        async def harm():
            value = []
            value.append(value)
            return value
        """,
    ),
    _plain("returns an object", "INVALID_OUTPUT", "return object()"),
    _plain("returns a number of 10,000 digits", "INVALID_OUTPUT", "return 10 ** 10_000"),
    _plain("returns an endless iterator", "INVALID_OUTPUT", "return iter(int, 1)"),
    in_body(
        "is an endless generator",
        "INVALID_OUTPUT",
        """
        def harm():
            while True: yield 1
        """,
    ),
    in_body(
        "returns what cannot even be shown",
        "INVALID_OUTPUT",
        """
        class Mute:
            def __repr__(self): raise SystemExit
            __str__ = __repr__
        async def harm():
            return {"a": Mute()}
        """,
    ),
    in_body(
        "a serializer that raises",
        "INVALID_OUTPUT",
        """
        class Answer(BaseModel):
            text: str = ""
            @field_serializer("text")
            def write(self, text): raise SystemExit
        async def harm() -> Answer:
            return Answer()
        """,
    ),
    in_body(
        "a serializer that never returns",
        "TASK_TIMEOUT",
        """
        class Answer(BaseModel):
            text: str = ""
            @field_serializer("text")
            def write(self, text): time.sleep(3600)
        async def harm() -> Answer:
            return Answer()
        """,
        options="timeout=1",
    ),
)

FLOODS: Final = (
    in_body(
        "prints 5 GB",
        FINISHED,
        """
        def harm():
            text = "x" * 1_000_000
            for _ in range(5_000): print(text)
        """,
    ),
    in_body("prints 100 MB at once", FINISHED, 'def harm(): print("x" * 100_000_000)'),
    in_body(
        "prints 100,000 lines",
        FINISHED,
        """
        async def harm():
            for _ in range(100_000): print()
        """,
    ),
    in_body(
        "writes 5 GB to descriptor 1",
        FINISHED,
        """
        def harm():
            text = b"x" * 1_000_000
            for _ in range(5_000): os.write(1, text)
        """,
        is_slow=True,
    ),
    in_body(
        "prints 200 MB to descriptor 1",
        FINISHED,
        """
        def harm():
            text = b"x" * 1_000_000
            for _ in range(200): os.write(1, text)
        """,
    ),
    in_body(
        "logs 10,000 lines",
        FINISHED,
        """
        def harm():
            for _ in range(10_000): current_task().log.warning("x" * 1_000)
        """,
    ),
    in_body(
        "beats 100,000 times",
        FINISHED,
        """
        def harm():
            for number in range(100_000): current_task().heartbeat({"n": number, "text": "\\0"})
        """,
    ),
    in_body(
        "leaks 500 threads",
        FINISHED,
        """
        def harm():
            for _ in range(500): threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
        """,
    ),
    in_body(
        "leaks every descriptor",
        "OSError",
        """
        LEAKED = []
        def harm():
            while True: LEAKED.append(os.open("/dev/null", os.O_RDONLY))
        """,
    ),
    in_body(
        "leaks 50 processes",
        FINISHED,
        """
        def harm():
            for _ in range(50): subprocess.Popen(["sleep", "30"])
        """,
    ),
    in_body(
        "leaves 10,000 tasks",
        FINISHED,
        """
        TASKS = set()
        async def harm():
            for _ in range(10_000): TASKS.add(asyncio.ensure_future(asyncio.sleep(60)))
        """,
    ),
    in_body(
        "takes 4 GB",
        "WORKER_CRASHED",
        """
        def harm():
            taken = []
            while len(taken) < 40:
                taken.append(b"x" * 100_000_000)
                time.sleep(0.05)
            time.sleep(60)
        """,
    ),
)

BLOCKS: Final = (
    _plain("an endless loop", "TASK_TIMEOUT", "while True: pass", options="timeout=2"),
    _async("sleeps for ever", "TASK_TIMEOUT", "await asyncio.sleep(3600)", options="timeout=1"),
    in_body(
        "swallows its cancellation",
        "TASK_TIMEOUT",
        """
        async def harm():
            while True:
                try: await asyncio.sleep(3600)
                except asyncio.CancelledError: pass
        """,
        options="timeout=1",
    ),
    _async("blocks the event loop", "WORKER_CRASHED", "time.sleep(3600)", is_slow=True),
    _plain(
        "a regex that holds the GIL",
        "WORKER_CRASHED",
        're.match(r"(a+)+$", "a" * 64 + "b")',
        is_slow=True,
    ),
)

FORKS: Final = (
    _async("os.fork that returns into the loop", FINISHED, "os.fork(); await asyncio.sleep(0.5)"),
    _plain("os.fork that returns in a thread", FINISHED, "os.fork()"),
    in_body(
        "os.fork in a task of its own",
        FINISHED,
        """
        async def fork():
            os.fork()
            await asyncio.sleep(0.2)
        async def harm():
            await asyncio.gather(fork(), fork())
        """,
    ),
    in_body(
        "daemonises",
        FINISHED,
        """
        async def harm():
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    await asyncio.sleep(1)
        """,
    ),
)

STATE: Final = (
    _async("changes the directory", FINISHED, 'os.chdir("/")'),
    _plain("changes the directory in a thread", FINISHED, 'os.chdir("/"); time.sleep(1)'),
    _async("changes the umask", FINISHED, "os.umask(0o777)"),
    _async("ignores SIGTERM", FINISHED, "signal.signal(signal.SIGTERM, signal.SIG_IGN)"),
    in_body(
        "sets off alarms",
        FINISHED,
        """
        async def harm():
            signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
            await asyncio.sleep(0.5)
        """,
    ),
    in_body(
        "takes the alarm away",
        FINISHED,
        """
        async def harm():
            signal.signal(signal.SIGALRM, signal.SIG_IGN)
        """,
    ),
    _async("changes the locale", FINISHED, 'locale.setlocale(locale.LC_ALL, "C")'),
    _async("clears os.environ", FINISHED, "os.environ.clear()"),
    _async("clears sys.path", FINISHED, "sys.path.clear()"),
    _async("clears sys.modules", FINISHED, "sys.modules.clear()"),
    _async("lowers the recursion limit", FINISHED, "sys.setrecursionlimit(60)"),
    _plain("closes descriptors 0, 1, 2", FINISHED, "for n in range(3): os.close(n)"),
    _plain("closes every descriptor", "WORKER_CRASHED", "os.closerange(3, 20_000)"),
    _async("removes sys.stdout", FINISHED, "sys.stdout = sys.stderr = None"),
    in_body(
        "replaces sys.stdout by what raises",
        FINISHED,
        """
        class Broken:
            def write(self, text): raise OSError("no")
            flush = write
        async def harm():
            sys.stdout = sys.stderr = Broken()
        """,
    ),
    _async("patches json and open", FINISHED, "json.dumps = json.loads = builtins.open = None"),
    _async("gc.disable and faulthandler", FINISHED, "gc.disable(); faulthandler.disable()"),
    _async(
        "an event loop policy",
        FINISHED,
        "asyncio.set_event_loop_policy(asyncio.DefaultEventLoopPolicy())",
    ),
    _async("stops the event loop", "RuntimeError", "asyncio.get_running_loop().stop()"),
    in_body(
        "cancels all tasks",
        "CancelledError",
        """
        async def harm():
            for task in asyncio.all_tasks(): task.cancel()
            await asyncio.sleep(3600)
        """,
    ),
)

BUILDERS: Final = (
    in_builder("raises", "RENDER_FAILED", "1 / 0"),
    in_builder("sys.exit", "RENDER_FAILED", "sys.exit(3)"),
    in_builder("raises a CancelledError", "RENDER_FAILED", "raise asyncio.CancelledError"),
    in_builder("os._exit", "WORKER_CRASHED", "os._exit(0)"),
    in_builder("a segfault", "WORKER_CRASHED", "ctypes.string_at(0)"),
    in_builder("an endless loop", "RENDER_FAILED", "while True: pass", timeout_s=1),
    in_builder("sleeps for ever", "RENDER_FAILED", "time.sleep(3600)", timeout_s=1),
    in_builder(
        "an endless loop that swallows its alarm",
        "RENDER_FAILED",
        """
        for _ in range(3):
            try:
                while True: pass
            except BaseException: pass
        return Task("t", 1)
        """,
        timeout_s=1,
    ),
    in_builder(
        "a regex that holds the GIL",
        "RENDER_FAILED",
        're.match(r"(a+)+$", "a" * 64 + "b")',
        timeout_s=1,
    ),
    in_builder("an endless loop in C", "WORKER_CRASHED", "sum(itertools.repeat(0))", is_slow=True),
    in_builder("os.fork", FINISHED, 'os.fork(); return Task("t", 1)'),
    in_builder(
        "endless children",
        "RENDER_FAILED",
        'return (Task("t", 1) for _ in iter(int, 1))',
        timeout_s=1,
    ),
    in_builder(
        "prints 200 MB",
        FINISHED,
        """
        for _ in range(200): print("x" * 1_000_000)
        return Task("t", 1)
        """,
    ),
    in_builder(
        "another tree each time",
        "RENDER_FAILED",
        """
        name = f"t{random.random()}"
        ctx.state(name)
        return Timer(name, duration=3600)
        """,
    ),
    in_builder(
        "a tree of 20,000 tasks",
        FINISHED,
        'return Parallel(*(Task(f"t{n}", 1) for n in range(20_000)))',
        is_slow=True,
    ),
    in_builder(
        "a tree of 100,001 tasks",
        "RENDER_FAILED",
        'return Parallel(*(Task(f"t{n}", 1) for n in range(100_001)))',
    ),
    in_builder(
        "10,000 tasks at once",
        FINISHED,
        """
        async def nothing(): await asyncio.sleep(0)
        return Parallel(*(Task(f"t{n}", nothing) for n in range(10_000)))
        """,
        is_slow=True,
    ),
    in_builder(
        "a tree with a cycle",
        "RENDER_FAILED",
        """
        tree = Sequence()
        tree.children = (tree,)
        return tree
        """,
    ),
    in_builder(
        "a tree of 20,000 levels",
        "RENDER_FAILED",
        """
        tree = Task("t", 1)
        for _ in range(20_000): tree = Sequence(tree)
        return tree
        """,
    ),
    in_builder(
        "a list in itself",
        "RENDER_FAILED",
        """
        children = []
        children.append(children)
        return children
        """,
    ),
)

MODELS: Final = (
    in_model("raises what is no ValueError", "INVALID_INPUT", 'return given["absent"]'),
    in_model("sys.exit", "INVALID_INPUT", "sys.exit(3)"),
    in_model("an endless loop", "INVALID_INPUT", "while True: pass"),
    in_model("os.fork", "INVALID_INPUT", "os.fork(); raise KeyError"),
)

HARMS: Final = (*IMPORTS, *ENDS, *OUTPUTS, *FLOODS, *BLOCKS, *FORKS, *STATE, *BUILDERS, *MODELS)
