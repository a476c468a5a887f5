"""That a child's thread asks for short slices of the processor, and what it starts does not."""

import json
import os
import platform
import re
import subprocess
import sys
import threading

import pytest

from worker.slices import SLICE_NS, read_attributes, shorten_slices

_POLICY, _NICE, _RUNTIME = 1, 3, 5  # fields of `sched_attr`; the last holds the slice
_KERNEL = tuple(map(int, re.findall(r"\d+", platform.release())[:2]))


def _in_a_thread(call):
    """Call in a thread of its own: the test's keeps its slices."""
    answers = []
    thread = threading.Thread(target=lambda: answers.append(call()))
    thread.start()
    thread.join()
    return answers[0]


@pytest.mark.skipif(_KERNEL < (6, 12), reason="the kernel keeps no slice for a thread")
def test_a_thread_has_short_slices_and_what_it_starts_has_the_usual_ones():
    def shorten_and_look():
        shorten_slices()
        script = "import json, worker.slices as s; print(json.dumps(s.read_attributes()))"
        process = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, check=True)
        return read_attributes(), _in_a_thread(read_attributes), json.loads(process.stdout)

    usual = _in_a_thread(read_attributes)
    shortened, in_thread, in_process = _in_a_thread(shorten_and_look)

    assert shortened[_RUNTIME] == SLICE_NS < usual[_RUNTIME]
    assert in_thread[_RUNTIME] == in_process[_RUNTIME] == usual[_RUNTIME]


@pytest.mark.parametrize(
    ("field", "value"),
    [(_RUNTIME, 0), (_NICE, -5), (_POLICY, os.SCHED_BATCH)],
    ids=["a kernel without slices", "a higher priority", "another policy"],
)
def test_nothing_is_asked_for_where_it_would_change_something_else(monkeypatch, field, value):
    def shorten_and_look():
        shorten_slices()
        return read_attributes()

    usual = _in_a_thread(read_attributes)
    if usual is None:
        pytest.skip("the kernel does not tell")
    told = [*usual[:field], value, *usual[field + 1 :]]
    monkeypatch.setattr("worker.slices.read_attributes", lambda: told)

    assert _in_a_thread(shorten_and_look) == usual


def test_on_a_machine_whose_calls_are_not_known_nothing_happens(monkeypatch):
    usual = _in_a_thread(read_attributes)
    monkeypatch.setattr("worker.slices._NUMBERS", {})

    _in_a_thread(shorten_slices)

    monkeypatch.undo()
    assert _in_a_thread(read_attributes) == usual
