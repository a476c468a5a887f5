"""Where a child begins: apart from what a child is, which its parent need not load."""

from multiprocessing.connection import Connection

from worker.loads import Loads
from worker.settings import ChildSettings


def be_child(settings: ChildSettings, loads: Loads, orders: Connection, outlet: Connection) -> None:
    """Be a child until told to end; the entry point of the process, for which the fork server has loaded everything."""
    from worker.child import run_child

    run_child(settings, loads, orders, outlet)
