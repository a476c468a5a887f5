"""A bundle holds the entry and what it imports below the root, and nothing is executed for it."""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from smithers.source import closure
from smithers.source.beneath import RootDirectory
from smithers.source.closure import SourceBundle, hash_source, read_bundle
from smithers.source.errors import OutsideRoot, SourceBroken, SourceNotFound, SourceUnreadable
from tests.support.source_files import write_files


@pytest.fixture
def top(tmp_path: Path) -> Path:
    return write_files(tmp_path / "root", {"flows/hello.py": "import helpers\n"})


@pytest.fixture
def root(top):
    with RootDirectory(top) as directory:
        yield directory


def modules(root: RootDirectory, entry: str) -> list[str]:
    return sorted(read_bundle(root, entry).modules)


def bundle_of(root: RootDirectory, files: Mapping[str, str | bytes], entry: str) -> SourceBundle:
    write_files(root.path, files)
    return read_bundle(root, entry)


def test_absolute_imports_are_found_beside_the_entry_before_the_root(root, top):
    assert modules(root, "flows/hello.py") == ["flows/hello.py"]
    write_files(top, {"helpers.py": ""})
    assert modules(root, "flows/hello.py") == ["flows/hello.py", "helpers.py"]
    write_files(top, {"flows/helpers.py": ""})
    assert modules(root, "flows/hello.py") == ["flows/hello.py", "flows/helpers.py"]


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        ("import a", ["a/__init__.py"]),
        ("import a.b", ["a/__init__.py", "a/b.py"]),
        ("import a.b as c", ["a/__init__.py", "a/b.py"]),
        ("from a import b", ["a/__init__.py", "a/b.py"]),
        ("from a import nothing", ["a/__init__.py"]),
        ("from a.deep import c", ["a/__init__.py", "a/deep/__init__.py", "a/deep/c.py"]),
        ("from a import *", ["a/__init__.py", "a/b.py"]),
        ("import plain", ["plain.py"]),
        ("import plain.b", ["plain.py"]),
        ("from .plain import x", ["plain.py"]),
        ("from . import a", ["a/__init__.py"]),
        ("from .. import a", []),
        ("import spaces.inner", ["spaces/inner.py"]),
        ("from spaces import inner", ["spaces/inner.py"]),
        ("import spaces", []),
        ("import os, sys, pydantic", []),
        ("from json import loads, decoder", []),
        ("def later():\n    import plain", ["plain.py"]),
        ("try:\n    import plain\nexcept ImportError:\n    plain = None", ["plain.py"]),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import plain", ["plain.py"]),
    ],
)
def test_each_kind_of_import_is_followed(root, statement, found):
    bundle = bundle_of(
        root,
        {
            "entry.py": statement,
            "a/__init__.py": "__all__ = ['b', 'missing']",
            "a/b.py": "",
            "a/deep/__init__.py": "",
            "a/deep/c.py": "",
            "plain.py": "",
            "spaces/inner.py": "",
            "json/decoder.py": "never meant",
        },
        "entry.py",
    )
    assert sorted(bundle.modules) == sorted(["entry.py", *found])


@pytest.mark.parametrize(
    "exports",
    [
        "__all__ = ['b'] + ['c']",
        "__all__ = ['b']\n__all__.extend(('c',))",
        "__all__ = ['b', *['c']]",
        "__all__ = NAMES = list(('b', 'c'))",
        "__all__: list[str] = []\n__all__ += sorted(['c'] + ['b'])",
        "__all__ = 'b c'.split()",
        "__all__ = []\n__all__[:] = ['b', 'c']",
    ],
)
def test_a_star_imports_what_is_exported_however_the_list_is_made(root, exports):
    files = {"entry.py": "from a import *", "a/__init__.py": exports, "a/b.py": "", "a/c.py": ""}
    assert sorted(bundle_of(root, files, "entry.py").modules) == sorted(files)


@pytest.mark.parametrize("text", ["", ".", "..", "\\0", "\\ud800", "../entry"])
def test_a_string_that_names_no_module_is_not_looked_for(root, text):
    files = {"entry.py": "from a import *", "a/__init__.py": f"__all__ = ['b', '{text}']"}
    assert sorted(bundle_of(root, files, "entry.py").modules) == sorted(files)


def test_imports_of_imports_and_relative_ones_in_packages_are_followed(root):
    bundle = bundle_of(
        root,
        {
            "pkg/__init__.py": "",
            "pkg/flows/__init__.py": "from . import shared",
            "pkg/flows/hello.py": "from ..tools.text import wrap",
            "pkg/flows/shared.py": "import hello",
            "pkg/tools/__init__.py": "from .numbers import *",
            "pkg/tools/numbers.py": "",
            "pkg/tools/text.py": "from ... import top",
            "pkg/unrelated.py": "",
            "top.py": "",
        },
        "pkg/flows/hello.py",
    )
    assert sorted(bundle.modules) == [
        "pkg/__init__.py",
        "pkg/flows/__init__.py",
        "pkg/flows/hello.py",
        "pkg/flows/shared.py",
        "pkg/tools/__init__.py",
        "pkg/tools/numbers.py",
        "pkg/tools/text.py",
        "top.py",
    ]


def test_a_local_module_shadows_the_standard_library_but_not_the_interpreter_or_us(root):
    bundle = bundle_of(
        root,
        {
            "entry.py": "import json, sys\nfrom smithers import Task",
            "json.py": "",
            "sys.py": "",
            "smithers/__init__.py": "",
        },
        "entry.py",
    )
    assert sorted(bundle.modules) == ["entry.py", "json.py"]


def test_an_edit_of_an_imported_module_changes_the_hash_and_one_of_another_does_not(root, top):
    write_files(top, {"helpers.py": "X = 1", "other.py": "X = 1"})
    first = read_bundle(root, "flows/hello.py").source_hash
    write_files(top, {"other.py": "X = 2"})
    assert read_bundle(root, "flows/hello.py").source_hash == first
    write_files(top, {"helpers.py": "X = 2"})
    assert read_bundle(root, "flows/hello.py").source_hash != first
    write_files(top, {"helpers.py": "X = 1"})
    os.utime(top / "helpers.py", (0, 0))
    assert read_bundle(root, "flows/hello.py").source_hash == first


def test_the_hash_covers_names_and_borders_of_modules():
    hashes = {
        hash_source("a.py", {"a.py": "xy"}),
        hash_source("b.py", {"a.py": "xy"}),
        hash_source("a.py", {"a.py": "x", "y": ""}),
        hash_source("a.py", {"a.pyx": "y"}),
    }
    assert len(hashes) == 4
    assert hash_source("a.py", {"a.py": "", "b.py": "é"}) == hash_source(
        "a.py", {"b.py": "é", "a.py": ""}
    )


def test_the_workflows_name_is_no_part_of_the_version(root):
    plain, named = read_bundle(root, "flows/hello.py"), read_bundle(root, "flows/hello.py:greet-me")
    assert (plain.workflow_name, named.workflow_name) == (None, "greet-me")
    assert (plain.entry, plain.source_hash) == (named.entry, named.source_hash)
    assert plain.to_json() == named.to_json()


def test_each_spelling_of_a_path_is_the_same_version(root):
    assert read_bundle(root, "./flows//hello.py") == read_bundle(root, "flows/hello.py")


def test_a_bundle_comes_back_from_its_text(root):
    bundle = bundle_of(root, {"helpers.py": "é = '\\u2028'\n"}, "flows/hello.py")
    assert SourceBundle.from_json(bundle.to_json()) == bundle
    assert SourceBundle.from_json(bundle.to_json(), workflow_name="x").workflow_name == "x"
    changed = json.loads(bundle.to_json())
    changed["modules"]["helpers.py"] = "other"
    assert SourceBundle.from_json(json.dumps(changed)).source_hash != bundle.source_hash


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("../flows/hello.py", OutsideRoot),
        ("/etc/passwd", OutsideRoot),
        ("/flows/hello.py", OutsideRoot),
        ("../x:y", OutsideRoot),
        ("flows/\0.py", OutsideRoot),
        ("nowhere.py", SourceNotFound),
        ("nowhere.py:name", SourceNotFound),
        ("flows/hello.py/", SourceUnreadable),
        ("flows/hello.py:", SourceUnreadable),
        ("flows", SourceUnreadable),
        ("flows/hello.txt", SourceUnreadable),
        ("", SourceNotFound),
        (".py", SourceNotFound),
        ("\ud800.py", SourceNotFound),
    ],
)
def test_a_path_that_is_no_workflow_file_says_which_way(root, path, error):
    with pytest.raises(error) as caught:
        read_bundle(root, path)
    assert caught.value.reason
    assert str(root.path) not in caught.value.reason


def test_a_half_written_file_is_never_read(root, top):
    write_files(top, {"helpers.py": "def half(\n"})
    with pytest.raises(SourceBroken) as caught:
        read_bundle(root, "flows/hello.py")
    assert (caught.value.file, caught.value.line) == ("helpers.py", 1)
    assert caught.value.reason == "helpers.py, line 1: '(' was never closed"


def test_source_is_decoded_as_python_decodes_it(root):
    bundle = bundle_of(
        root,
        {
            "entry.py": b"import bom, cookie, lines",
            "bom.py": b"\xef\xbb\xbfX = '\xc3\xa9'\n",
            "cookie.py": b"# -*- coding: latin-1 -*-\nX = '\xe9'\n",
            "lines.py": b"X = 1\r\nY = 2\rZ = 3\n",
        },
        "entry.py",
    )
    assert bundle.modules["bom.py"] == "X = 'é'\n"
    assert bundle.modules["cookie.py"] == "# -*- coding: latin-1 -*-\nX = 'é'\n"
    assert bundle.modules["lines.py"] == "X = 1\nY = 2\nZ = 3\n"


# Python 3.14 compiles it.
TOO_LONG_A_CHAIN = [(b"a" + b".b" * 100_000, None)] if sys.version_info < (3, 14) else []


@pytest.mark.parametrize(
    ("content", "line"),
    [
        *TOO_LONG_A_CHAIN,
        (b"X = 1\nY = '\xff'\n", 2),
        (b"# coding: no-such-codec\n", 1),
        (b"# coding: hex\n61", 1),
        (b"# coding: utf-16\nX = 1", 1),
        (b"# coding: unicode_escape\nX = '\\ud800'\n", 1),
        (b"\xef\xbb\xbf# coding: latin-1\n", 1),
        (b"X = 1\nY = '\0'\n", 2),
        (b"X = 1\n  Y = 2\n", 2),
        (b"(" * 5000, 1),
        (b"-" * 100_000 + b"1", None),
    ],
)
def test_what_is_not_python_is_broken_with_its_line(root, content, line):
    with pytest.raises(SourceBroken) as caught:
        bundle_of(root, {"entry.py": content}, "entry.py")
    assert (caught.value.file, caught.value.line) == ("entry.py", line)


def test_a_warning_of_the_compiler_is_no_error(root):
    assert bundle_of(root, {"entry.py": "X = '\\d'\n"}, "entry.py").modules


def test_the_limits_are_told(root, monkeypatch):
    files = {f"m{number}.py": f"import m{number + 1}" for number in range(6)}
    with pytest.raises(SourceUnreadable, match="524288 bytes"):
        bundle_of(root, {"large.py": b"#" * (512 * 1024 + 1)}, "large.py")
    monkeypatch.setattr(closure, "MAX_MODULES", 5)
    with pytest.raises(SourceUnreadable, match="more than 5 modules"):
        bundle_of(root, files, "m0.py")
    monkeypatch.setattr(closure, "MAX_MODULES", 6)
    assert len(bundle_of(root, files, "m0.py").modules) == 6
    monkeypatch.setattr(closure, "MAX_BUNDLE_BYTES", 50)
    with pytest.raises(SourceUnreadable, match="larger than 50 bytes"):
        read_bundle(root, "m0.py")


def test_an_imported_link_that_leads_out_is_refused_and_a_directory_that_does_is_not_there(
    root, top, tmp_path
):
    outside = write_files(tmp_path / "outside", {"helpers.py": "SECRET", "__init__.py": "SECRET"})
    (top / "helpers").symlink_to(outside, target_is_directory=True)
    assert modules(root, "flows/hello.py") == ["flows/hello.py"]
    (top / "helpers.py").symlink_to(outside / "helpers.py")
    with pytest.raises(OutsideRoot) as caught:
        read_bundle(root, "flows/hello.py")
    assert caught.value.reason.startswith("helpers.py leads out")
    (top / "flows" / "out.py").symlink_to(outside / "helpers.py")
    with pytest.raises(OutsideRoot):
        read_bundle(root, "flows/out.py")


def test_what_is_no_regular_file_is_no_module(root, top):
    os.mkfifo(top / "flows" / "helpers.py")
    (top / "helpers.py").mkdir()
    assert modules(root, "flows/hello.py") == ["flows/hello.py"]
    with pytest.raises(SourceUnreadable):
        read_bundle(root, "helpers.py")


def test_nothing_is_executed_or_imported(root, tmp_path):
    before = set(sys.modules)
    bundle_of(root, {"entry.py": f"open({str(tmp_path / 'ran')!r}, 'w')\nimport this"}, "entry.py")
    assert not (tmp_path / "ran").exists()
    assert set(sys.modules) == before
