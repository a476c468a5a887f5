"""A version's workflow is found by the rules of authoring.md, and described, whatever it is."""

import json

import pytest

from smithers.source.beneath import RootDirectory
from smithers.source.closure import SourceBundle, read_bundle
from smithers.source.description import MAX_ERROR_CHARS, Description, describe
from smithers.source.errors import WorkflowNotFound
from smithers.source.loading import find_workflow, load_module
from smithers.tracebacks import without_paths
from tests.support.source_files import unload, write_files

NOTHING = Description(
    workflow_name=None, input_schema=None, queue=None, isolation=None, database=None, error=None
)
HEAD = """
from pydantic import BaseModel
from smithers import Sequence, workflow
"""
ONE = """
@workflow
def publish_article(ctx): return Sequence()
"""
TWO = """
@workflow(name="the-second")
def second(ctx): return Sequence()
"""


def error_of(description: Description) -> str:
    assert description.error is not None
    return description.error


@pytest.fixture
def bundle_of(tmp_path):
    hashes = []

    def make(*parts: str, **others: str) -> SourceBundle:
        modules = {f"{name}.py": HEAD + text for name, text in others.items()}
        write_files(tmp_path, {"flow.py": HEAD + "".join(parts), **modules})
        with RootDirectory(tmp_path) as root:
            bundle = read_bundle(root, "flow.py")
        hashes.append(bundle.source_hash)
        return bundle

    yield make
    for source_hash in hashes:
        unload(source_hash)


def test_the_only_workflow_is_found(bundle_of):
    module = load_module(bundle_of(ONE, "again = publish_article"))
    assert find_workflow(module, None) is module.publish_article


def test_the_attribute_workflow_goes_first_wherever_it_comes_from(bundle_of):
    module = load_module(bundle_of(ONE, TWO, "workflow = second"))
    assert find_workflow(module, None) is module.second
    module = load_module(bundle_of(ONE, "from other import second as workflow", other=TWO))
    assert find_workflow(module, None).name == "the-second"


def test_an_imported_workflow_does_not_count_unless_it_is_named(bundle_of):
    module = load_module(bundle_of("from other import second", ONE, other=TWO))
    assert find_workflow(module, None) is module.publish_article
    assert find_workflow(module, "second") is module.second


@pytest.mark.parametrize("name", ["second", "the-second"])
def test_a_name_is_an_attributes_or_a_workflows(bundle_of, name):
    module = load_module(bundle_of(ONE, TWO))
    assert find_workflow(module, name) is module.second


@pytest.mark.parametrize(
    ("parts", "name", "what", "candidates"),
    [
        ([], None, "no workflow (a function under @workflow)", ()),
        ([ONE, TWO], None, "several workflows", ("publish_article", "second")),
        ([ONE], "other", "no workflow 'other'", ("publish_article",)),
        ([ONE], "BaseModel", "no workflow 'BaseModel'", ("publish_article",)),
        (["from other import second"], None, "no workflow of its own", ("second",)),
    ],
)
def test_what_is_not_found_names_the_candidates(bundle_of, parts, name, what, candidates):
    bundle = bundle_of(*parts, other=TWO)
    with pytest.raises(WorkflowNotFound) as caught:
        find_workflow(load_module(bundle), name)
    assert caught.value.candidates == candidates
    assert caught.value.reason.startswith(f"flow.py holds {what}")
    assert caught.value.reason.endswith(", ".join(candidates))
    assert describe(bundle, name).error == caught.value.reason


def test_a_workflow_of_another_module_is_described_by_its_file_and_name(bundle_of):
    """So the runs of subflows name theirs; when one is resumed, its source is described."""
    bundle = bundle_of("import other\n", ONE, other=TWO)
    assert describe(bundle, "other.py:second").workflow_name == "the-second"
    assert "is no part of the source" in error_of(describe(bundle, "none.py:second"))


def test_a_workflow_is_described(bundle_of):
    bundle = bundle_of(
        """
        class Brief(BaseModel):
            topic: str = "\\\\u0000 is fine as text"

        @workflow(input=Brief, queue="gpu", isolation="process", database="OWN_URL")
        def publish_article(ctx): return Sequence()
        """.replace("\n        ", "\n")
    )
    description = describe(bundle, None)
    assert description.workflow_name == "publish-article"
    assert description.input_schema is not None
    assert description.input_schema["properties"]["topic"]["type"] == "string"
    assert (description.queue, description.isolation) == ("gpu", "process")
    assert (description.database, description.error) == ("OWN_URL", None)
    assert Description.from_json(description.to_json()) == description


@pytest.mark.parametrize(
    ("queue", "complaint"),
    [
        ("'my queue'", "takes a word without blanks, not 'my queue'"),
        ("'a\\tb'", "takes a word without blanks"),
        ("'a\\x00b'", "takes a word without blanks"),
        ("'\\ud800'", "takes a word without blanks"),
        ("7", "takes a word without blanks, not 7"),
        ("''", "takes 1 to 200 characters, not 0"),
        ("'q' * 201", "takes 1 to 200 characters, not 201"),
    ],
)
def test_a_queue_that_no_worker_can_claim_from_is_an_error_of_the_author(
    bundle_of, queue, complaint
):
    bundle = bundle_of(f"@workflow(queue={queue})\ndef publish_article(ctx): return Sequence()")
    error = describe(bundle, None).error
    assert error is not None
    assert f"InvalidTree: @workflow(queue=...) of 'publish-article' {complaint}" in error


@pytest.mark.parametrize("queue", ["gpu", "q" * 200, "größe/4:x"])
def test_a_queue_is_any_word_that_a_command_can_name(bundle_of, queue):
    bundle = bundle_of(f"@workflow(queue={queue!r})\ndef publish_article(ctx): return Sequence()")
    assert describe(bundle, None).queue == queue


def test_a_workflow_without_options_is_described(bundle_of):
    expected = {**json.loads(NOTHING.to_json()), "workflow_name": "publish-article"}
    assert json.loads(describe(bundle_of(ONE), None).to_json()) == expected


def test_an_import_error_is_the_description(bundle_of):
    found = describe(bundle_of("import other", other="\n\nimport no_such_library"), None)
    assert found.error == (
        "flow.py cannot be imported: "
        "ModuleNotFoundError: No module named 'no_such_library' (other.py, line 6)"
    )
    assert found.traceback is not None
    assert "    import no_such_library" in found.traceback.splitlines()
    assert "smithers/source" not in found.traceback


def test_an_error_quotes_no_source(bundle_of):
    found = describe(bundle_of('exec("secret = (")'), None)
    assert "'(' was never closed" in error_of(found)
    assert "secret" not in error_of(found)


def test_broken_source_is_the_description(bundle_of):
    assert describe(bundle_of("return"), None).error == "flow.py, line 4: 'return' outside function"


@pytest.mark.parametrize(
    "field",
    [
        "x: BaseException",  # no JSON schema at all
        "x: str = '\\0'",  # no database can hold it
        "x: str = '\\ud800'",
        "model_config = {'json_schema_extra': {'x': object()}}",
        "model_config = {'json_schema_extra': lambda schema: 1 / 0}",
    ],
)
def test_a_model_without_a_usable_schema_is_an_error_of_the_author(bundle_of, field):
    source = f"""
class Brief(BaseModel, arbitrary_types_allowed=True):
    {field}

@workflow(input=Brief)
def publish_article(ctx): return Sequence()
"""
    description = describe(bundle_of(source), None)
    assert "the input model of 'publish-article' has no JSON schema" in error_of(description)
    assert "Traceback" not in error_of(description)
    assert description.traceback
    assert description.input_schema is None


def test_an_error_fits_into_the_database_and_the_answer(bundle_of):
    text = "'\\0 \\ud800 /etc/secrets/key ' + 'x' * 100_000"
    description = describe(bundle_of(f"raise ValueError({text})"), None)
    for told in (description.error, description.traceback):
        assert told is not None
        assert "\0" not in told
        assert told.encode()
        assert "…/key" in told
        assert "/etc" not in told
        assert len(told) <= MAX_ERROR_CHARS + 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("in '/home/me/my files/x.py'", "in '…/x.py'"),
        ('File "/usr/lib/a.py", line 3', 'File "…/a.py", line 3'),
        ("(/usr/lib/python3/json/__init__.py)", "(…/__init__.py)"),
        ("see https://example.com/a/b and a/b/c", "see https://example.com/a/b and a/b/c"),
        ("1 / 2 /x", "1 / 2 /x"),
        ("path=/srv/app/x", "path=…/x"),
    ],
)
def test_absolute_paths_are_shortened(text, expected):
    assert without_paths(text) == expected
