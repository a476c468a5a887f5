"""Rehearse a workflow in a test: on the engine and the store of a server, without one.

People are played by the test, or by a script of what they say; time is moved by hand. Bodies run in this process, so what
a test puts in the place of an author's function is what is called.

    with Rehearsal() as rehearsal:
        run = rehearsal.start(publish_article, {"topic": "ferrets"}, people={"approve": True})
        assert run.wait().status == "finished"
"""

from smithers.testing.rehearsal import Rehearsal, RehearsedRun
from smithers.testing.stage import Question, RehearsalTimeout

__all__ = ["Question", "Rehearsal", "RehearsalTimeout", "RehearsedRun"]
