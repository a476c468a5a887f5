"""A stored version is loaded under its own names, and imports what was stored with it."""

import linecache
import sys
import threading
import traceback
import typing
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType

import pytest

from smithers.source.beneath import RootDirectory
from smithers.source.closure import SourceBundle, read_bundle
from smithers.source.errors import ImportFailed, SourceBroken
from smithers.source.loading import find_export, load_module, load_workflow
from smithers.source.version import package_name
from tests.support.source_files import unload, write_files


@pytest.fixture(autouse=True, scope="module")
def nothing_of_others():
    """Forget what tests of other modules have loaded into this process."""
    for name in [name for name in sys.modules if name.startswith("smithers_source_")]:
        unload(name.removeprefix("smithers_source_").partition(".")[0])


@pytest.fixture
def bundle_of(tmp_path):
    """Write files, read the bundle, and unload at the end whatever was made of it."""
    hashes = []

    def make(files: dict[str, str | bytes], entry: str = "flows/hello.py") -> SourceBundle:
        write_files(tmp_path, files)
        with RootDirectory(tmp_path) as root:
            bundle = read_bundle(root, entry)
        hashes.append(bundle.source_hash)
        return bundle

    yield make
    for source_hash in hashes:
        unload(source_hash)
    assert loaded() == []


@pytest.fixture
def load(bundle_of):
    def make(files: dict[str, str | bytes], entry: str = "flows/hello.py") -> ModuleType:
        return load_module(bundle_of(files, entry))

    return make


def loaded() -> list[str]:
    names = [name for name in sys.modules if name.startswith("smithers_source_")]
    return names + [name for name in linecache.cache if name.startswith(("flows/", "pkg/"))]


@pytest.mark.parametrize(
    "statement",
    [
        "import helpers\nX = helpers.X",
        "import flows.helpers\nX = flows.helpers.X",
        "import flows.helpers as h\nX = h.X",
        "from helpers import X",
        "from helpers import *",
        "from . import helpers\nX = helpers.X",
        "from .helpers import X",
        "from flows import helpers\nX = helpers.X",
        "from .. import flows\nX = flows.helpers.X",
        "import pkg.deep.inner\nX = pkg.deep.inner.X",
        "import pkg.deep.inner as inner\nX = inner.X",
        "from pkg import deep\nX = deep.inner.X",
        "from pkg.deep import inner\nX = inner.X",
        "from pkg import *\nX = deep.inner.X",
        "import spaces.inner\nX = spaces.inner.X",
        "from spaces import inner\nX = inner.X",
        "def f():\n    from helpers import X\n    return X\nX = f()",
        "exec('from helpers import X')",
    ],
)
def test_each_kind_of_import_finds_the_stored_module(load, statement):
    module = load(
        {
            "flows/__init__.py": "from . import helpers",
            "flows/hello.py": statement,
            "flows/helpers.py": "X = 'found'",
            "helpers.py": "X = 'the wrong one'",
            "pkg/__init__.py": "__all__ = ['deep']",
            "pkg/deep/__init__.py": "from .inner import X\nfrom . import inner",
            "pkg/deep/inner.py": "from .. import deep\nX = 'found'",
            "spaces/inner.py": "X = 'found'",
        }
    )
    assert module.X == "found"


def test_what_is_installed_comes_from_where_it_is_installed(load):
    module = load({"flows/hello.py": "import os.path, json as j\nfrom collections import abc"})
    assert module.os is sys.modules["os"]
    assert module.j is sys.modules["json"]
    assert module.abc is sys.modules["collections.abc"]


def test_a_module_beside_the_entry_shadows_the_standard_library_for_its_version_alone(load):
    import json

    module = load(
        {
            "flows/hello.py": "import json, lib\nX = json.X",
            "flows/json.py": "X = 'local'",
            "flows/lib.py": "import json\nassert json.X == 'local'",
        }
    )
    assert module.X == "local"
    assert sys.modules["json"] is json
    assert load({"plain.py": "import json"}, "plain.py").json is json


def test_two_versions_stand_side_by_side(load):
    files = {
        "flows/hello.py": "def f():\n    from helpers import g\n    return g()",
        "flows/helpers.py": "from other import X\ndef g():\n    return X",
        "flows/other.py": "X = 1",
    }
    first = load(files)
    second = load({**files, "flows/other.py": "X = 2"})
    assert (first.f(), second.f(), first.f()) == (1, 2, 1)
    assert first.__name__ != second.__name__


def test_the_same_version_is_executed_once(bundle_of):
    files = {"flows/hello.py": "import helpers", "flows/helpers.py": "X = []"}
    bundle = bundle_of(files)
    again = SourceBundle.from_json(bundle.to_json())
    assert load_module(bundle) is load_module(again)


def test_many_threads_execute_a_version_once(bundle_of):
    barrier = threading.Barrier(8)
    bundle = bundle_of(
        {"flows/hello.py": "import helpers\nX = helpers.X", "flows/helpers.py": "X = object()"}
    )

    def one(_: int) -> object:
        barrier.wait()
        return load_module(bundle).X

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(one, range(8)))) == 1


def test_many_threads_with_a_version_that_fails_all_hear_of_it(bundle_of):
    barrier = threading.Barrier(8)
    bundle = bundle_of({"flows/hello.py": "import helpers", "flows/helpers.py": "1 / 0"})

    def one(_: int) -> str:
        barrier.wait()
        with pytest.raises(ImportFailed) as caught:
            load_module(bundle)
        return caught.value.reason

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(one, range(8)))) == 1
    assert loaded() == []


def test_a_lazy_import_long_after_loading_finds_the_stored_module(load, tmp_path):
    module = load(
        {
            "flows/hello.py": "def f():\n    import helpers\n    return helpers.X",
            "flows/helpers.py": "X = 'stored'",
        }
    )
    (tmp_path / "flows" / "helpers.py").write_text("X = 'edited'")
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(lambda _: module.f(), range(8))) == {"stored"}


def test_threads_that_import_lazily_at_once_see_a_module_executed_once_and_whole(load):
    module = load(
        {
            "flows/hello.py": "seen = []\ndef f():\n    import helpers\n    return helpers.X",
            "flows/helpers.py": """
                from hello import seen
                seen.append("executed")
                for _ in range(100_000):
                    pass  # long enough for every other thread to come along
                X = object()
                """,
        }
    )
    barrier = threading.Barrier(8)
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(8) as pool:
            found = set(pool.map(lambda _: (barrier.wait(), module.f())[1], range(8)))
    finally:
        sys.setswitchinterval(interval_s)
    assert len(found) == 1
    assert module.seen == ["executed"]


def test_the_names_of_a_module_are_its_versions_own(bundle_of):
    bundle = bundle_of(
        {"flows/hello.py": "import pkg.deep", "pkg/__init__.py": "", "pkg/deep.py": ""}
    )
    module = load_module(bundle)
    own = package_name(bundle.source_hash)
    assert own == f"smithers_source_{bundle.source_hash[:16]}"
    assert module.__name__ == f"{own}.flows.hello"
    assert module.__spec__ is not None
    assert module.__package__ == module.__spec__.parent == f"{own}.flows"
    assert module.__spec__.name == module.__name__
    assert module.__file__ == "flows/hello.py"
    assert sys.modules[module.__name__] is module
    assert module.pkg.__name__ == module.pkg.__package__ == f"{own}.pkg"
    assert module.pkg.deep is sys.modules[f"{own}.pkg.deep"]
    assert "pkg" not in sys.modules


@pytest.mark.parametrize(
    "entry",
    ["my-flow.py", "flows/my-flow.v2.py", "v1.2/flow.py", "__init__.py", "flows/__init__.py"],
)
def test_a_file_whose_name_is_no_identifier_is_an_entry_like_any_other(load, entry):
    place = entry.rpartition("/")[0]
    helper = f"{place}/helpers.py" if place else "helpers.py"
    module = load({entry: "import helpers\nfrom .helpers import X", helper: "X = 1"}, entry)
    assert module.X == module.helpers.X == 1
    assert module.__name__ != "__main__"


def test_a_module_and_a_directory_of_one_name_are_two(load):
    module = load(
        {
            "flow.py": "from flow import X, inner\nY = inner.X",
            "flow/__init__.py": "X = 'package'",
            "flow/inner.py": "X = 'inner'",
        },
        "flow.py",
    )
    assert (module.X, module.Y) == ("package", "inner")
    beside = load({"a/hello.py": "import a\nX = a.X", "a.py": "X = 'module'"}, "a/hello.py")
    assert beside.X == "module"


def test_circular_imports_work_as_far_as_pythons_do(load):
    module = load(
        {
            "flows/hello.py": "import other\nX = 1\nfrom other import f\nY = f()",
            "flows/other.py": "import hello\nfrom . import third\ndef f():\n    return hello.X",
            "flows/third.py": "from . import other\nfrom flows import other as again",
        }
    )
    assert module.Y == 1
    with pytest.raises(ImportFailed, match="cannot import name 'X'") as caught:
        load({"flows/hello.py": "import bad\nX = 1", "flows/bad.py": "from hello import X"})
    assert caught.value.file == "flows/bad.py"


def test_annotations_that_are_strings_are_found(load):
    module = load(
        {
            "flows/hello.py": """
                from __future__ import annotations
                import dataclasses, enum, typing
                from pydantic import BaseModel
                from models import Inner

                @dataclasses.dataclass(slots=True)
                class Data:
                    inner: Inner
                    many: typing.ClassVar[list[Data]] = []

                class Model(BaseModel):
                    inner: Inner
                    next: Model | None = None

                def function(data: Data) -> Model: ...
                """,
            "flows/models.py": """
                from __future__ import annotations
                from pydantic import BaseModel

                class Inner(BaseModel):
                    leaf: Leaf

                class Leaf(BaseModel):
                    x: int
                """,
        }
    )
    assert module.Model(inner={"leaf": {"x": 1}}).inner.leaf.x == 1
    assert module.Data(inner=1).inner == 1
    assert typing.get_type_hints(module.function) == {"data": module.Data, "return": module.Model}


def test_a_workflow_is_found_where_its_version_has_it_whatever_decorates_its_builder(bundle_of):
    bundle = bundle_of(
        {
            "flows/hello.py": """
                from smithers import workflow
                from decorating import traced
                import others
                from others import shared

                @workflow
                @traced
                def own(ctx): return []

                def make():
                    @workflow
                    def nameless(ctx): return []
                    return nameless
            """,
            "flows/others.py": """
                from smithers import workflow
                from decorating import traced

                @workflow
                @traced
                def other(ctx): return []

                @workflow
                def shared(ctx): return []
            """,
            "flows/decorating.py": """
                def traced(function):
                    def trace(ctx): return function(ctx)
                    return trace
            """,
        }
    )
    entry = load_module(bundle)
    for found, export in (
        (entry.own, "flows/hello.py:own"),
        (entry.others.other, "flows/others.py:other"),
        (entry.shared, "flows/hello.py:shared"),
    ):
        assert find_export(bundle.source_hash, found) == export
        assert load_workflow(bundle, export) is found
    assert find_export(bundle.source_hash, entry.make()) is None


def test_a_traceback_shows_the_stored_lines_of_its_own_version(load, tmp_path):
    first = load({"flows/hello.py": "def f():\n    raise ValueError('one')  # first\n"})
    second = load({"flows/hello.py": "def f():\n    raise ValueError('two')  # second\n"})
    (tmp_path / "flows/hello.py").write_text("edited\nand edited\n")
    linecache.checkcache()
    for module, line in ((first, "# first"), (second, "# second")):
        with pytest.raises(ValueError, match=r"one|two") as caught:
            module.f()
        text = "".join(traceback.format_exception(caught.value))
        assert line in text
        assert 'File "flows/hello.py@' in text
        assert str(tmp_path) not in text


def test_a_failure_shows_the_authors_frames_alone_and_leaves_nothing(bundle_of):
    bundle = bundle_of(
        {
            "flows/hello.py": "import good\nimport helpers\n",
            "flows/good.py": "",
            "flows/helpers.py": "def f():\n    return 1 / 0\n\nf()\n",
        }
    )
    with pytest.raises(ImportFailed) as caught:
        load_module(bundle)
    error = caught.value
    lines = error.traceback.splitlines()
    files = [line.split('"')[1].split("@")[0] for line in lines if line.startswith("  File")]
    assert files == ["flows/hello.py", "flows/helpers.py", "flows/helpers.py"]
    assert "    return 1 / 0" in lines
    assert lines[-1] == "ZeroDivisionError: division by zero"
    assert (error.file, error.line) == ("flows/helpers.py", 2)
    assert error.reason == (
        "flows/hello.py cannot be imported: "
        "ZeroDivisionError: division by zero (flows/helpers.py, line 2)"
    )
    assert loaded() == []
    with pytest.raises(ImportFailed):  # and once more: it failed, it is not half there
        load_module(bundle)


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("import sys; sys.exit('bye')", "SystemExit: bye"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("raise BaseException('all')", "BaseException: all"),
        ("import no_such_library", "ModuleNotFoundError: No module named 'no_such_library'"),
        ("import helpers.missing", "ModuleNotFoundError: No module named 'helpers.missing'"),
        ("from .missing import x", "ModuleNotFoundError: No module named 'missing'"),
        ("from helpers import missing", "ImportError: cannot import name 'missing' from 'flows.h"),
        ("from ... import x", "ImportError: attempted relative import beyond top-level package"),
        ("import json; from json import nothing", "(…/__init__.py)"),
        ("open('/no/such/secret place/file.txt')", "'…/file.txt'"),
        ("eval('1 +')", "SyntaxError: invalid syntax"),
        (
            "import importlib; importlib.import_module('helpers')",
            "ModuleNotFoundError: No module named 'helpers'",
        ),
    ],
)
def test_whatever_a_module_raises_is_an_import_that_failed(bundle_of, statement, message):
    with pytest.raises(ImportFailed) as caught:
        load_module(bundle_of({"flows/hello.py": statement, "flows/helpers.py": ""}))
    assert message in caught.value.reason
    assert "/no/such" not in caught.value.reason
    assert "/lib/python" not in caught.value.reason
    assert caught.value.line == 1


@pytest.mark.parametrize("file", ["flows/hello.py", "flows/helpers.py"])
def test_what_only_the_compiler_finds_is_broken_source(bundle_of, file):
    files = {"flows/hello.py": "import helpers", "flows/helpers.py": ""}
    with pytest.raises(SourceBroken) as caught:
        load_module(bundle_of({**files, file: "X = 1\nreturn X\n"}))
    assert (caught.value.file, caught.value.line) == (file, 2)
    assert "'return' outside function" in caught.value.reason


def test_a_lazy_import_that_fails_raises_the_modules_own_error_and_may_succeed_later(load):
    module = load(
        {
            "flows/hello.py": "ready = []\ndef f():\n    import helpers\n    return helpers.X",
            "flows/helpers.py": "import hello\nX = hello.ready[0]",
        }
    )
    with pytest.raises(IndexError):
        module.f()
    assert [name for name in loaded() if "helpers" in name and "@" not in name] == []
    module.ready.append("now")
    assert module.f() == "now"


def test_an_import_that_is_tried_and_handled_does_no_harm(load):
    module = load(
        {
            "flows/hello.py": """
                try:
                    import helpers
                except ZeroDivisionError:
                    helpers = None
                try:
                    import no_such_library
                except ImportError:
                    no_such_library = None
                """,
            "flows/helpers.py": "1 / 0",
        }
    )
    assert module.helpers is module.no_such_library is None


def test_a_warning_of_the_compiler_does_not_stop_a_version(load, capsys):
    with pytest.warns(SyntaxWarning):
        assert load({"flows/hello.py": "X = 1 is 1"}).X


def test_a_module_that_puts_something_else_in_its_place_is_that(load):
    module = load(
        {
            "flows/hello.py": "import helpers\nX = helpers",
            "flows/helpers.py": "import sys\nsys.modules[__name__] = 'replaced'",
        }
    )
    assert module.X == "replaced"


def test_an_unloaded_version_is_gone_and_what_still_runs_keeps_working(bundle_of):
    bundle = bundle_of(
        {
            "flows/hello.py": "def f():\n    import helpers\n    return helpers.X",
            "helpers.py": "X = 1",
        }
    )
    module = load_module(bundle)
    unload(bundle.source_hash)
    assert loaded() == []
    unload(bundle.source_hash)
    assert module.f() == 1
    assert load_module(bundle) is not module


def test_the_servers_own_modules_are_untouched(load):
    before = {name: id(module) for name, module in sys.modules.items()}
    load({"flows/hello.py": "import smithers, helpers", "flows/helpers.py": "import smithers"})
    assert {name: id(sys.modules[name]) for name in before} == before
