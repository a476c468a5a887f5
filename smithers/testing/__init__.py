"""Rehearse a workflow in a test: on the engine and the store of a server, but without a server.

The test, or its script of answers, plays the people; the clock is moved by hand. Bodies run in this process, so a
function that the test patches is the one that is called.

    with Rehearsal() as rehearsal:
        run = rehearsal.start(publish_article, {"topic": "ferrets"}, people={"approve": True})
        assert run.wait().status == "finished"
"""

from smithers.testing.rehearsal import Rehearsal, RehearsedRun
from smithers.testing.stage import Question, RehearsalTimeout

__all__ = ["Question", "Rehearsal", "RehearsalTimeout", "RehearsedRun"]
