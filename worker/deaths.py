"""Why a pool's children end, and how workers' deaths are noticed: the labels of two metrics."""

from enum import StrEnum


class ChildEnd(StrEnum):
    """Why a pool's child ended: the first two by itself, the others killed by its pool."""

    EXIT = "exit"  # as planned
    CRASH = "crash"
    SILENT = "silent"  # no heartbeat: its loop stands still
    MEMORY = "memory"
    DISPLACED = "displaced"  # others had declared it dead
    NOT_REGISTERED = "not-registered"
    LATE = "drain-timeout"


class DeathSign(StrEnum):
    """How a worker's death was noticed."""

    EXIT = "exit"  # its parent saw it end
    PROCESS_GONE = "process-gone"
    SILENT = "silent"  # no heartbeat in the database
    DISCONNECTED = "disconnected"  # its pool's liveness session ended, and so did its heartbeats
