"""The tables whose rows a mirror copies, and the statements that copy them: by their keys, or all that runs have.

Rows travel as JSON and are read by the names of their columns: the two databases may be a version apart.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from smithers.store.patterns import fill

_ROWS: Final = "unnest({arrays}) AS k ({key}) JOIN smithers.{table} AS t ON ({t_key}) = ({k_key})"

# -- name: weigh_rows
# The existing rows for these keys, and their size. octet_length does not read TOASTed values.
_WEIGH: Final = """
    SELECT {t_key}, {weight} AS byte_count FROM {rows}"""

# -- name: weigh_all
# The same for all rows of these runs, a page at a time, each run's from the row after the given one.
_WEIGH_ALL: Final = """
    SELECT n.* FROM unnest($1::text[], $2::text[], $3::integer[]) AS k (run_id, node_id, iteration) CROSS JOIN LATERAL (
        SELECT {t_key}, {weight} AS byte_count FROM smithers.{table} AS t
        WHERE t.run_id = k.run_id AND (t.node_id, t.iteration) > (k.node_id, k.iteration)
        ORDER BY t.node_id, t.iteration LIMIT $4) AS n
    ORDER BY n.run_id, n.node_id, n.iteration LIMIT $4"""

# -- name: read_rows
_READ: Final = """
    SELECT to_json(t)::text AS row FROM {rows}"""

# -- name: replace_rows
_DELETE: Final = "DELETE FROM smithers.{table} AS t USING unnest({arrays}) AS k ({key}) WHERE ({t_key}) = ({k_key})"
_INSERT: Final = """
    INSERT INTO smithers.{table} SELECT t.* FROM unnest($1::text[]) AS c (row)
    CROSS JOIN LATERAL json_populate_record(NULL::smithers.{table}, c.row::json) AS t"""


class MirroredTable:
    """The statements that copy the rows of one table."""

    def __init__(self, name: str, *, key: Mapping[str, str], large: Sequence[str]) -> None:
        """`key`: its columns, each with its type; `large`: the columns that make a row large."""
        t_key = ", ".join(f"t.{column}" for column in key)
        by_key = {
            "table": name,
            "arrays": ", ".join(f"${n}::{kind}[]" for n, kind in enumerate(key.values(), 1)),
            "key": ", ".join(key),
            "t_key": t_key,
            "k_key": ", ".join(f"k.{column}" for column in key),
        }
        weight = " + ".join(f"coalesce(octet_length(t.{column}), 0)" for column in large)
        rows = fill(_ROWS, **by_key)
        self.weigh = fill(_WEIGH, t_key=t_key, weight=weight, rows=rows)
        self.weigh_all = fill(_WEIGH_ALL, t_key=t_key, weight=weight, table=name)
        self.read = fill(_READ, rows=rows)
        self.delete = fill(_DELETE, **by_key)
        self.insert = fill(_INSERT, table=name)


_OF_NODE: Final = {"run_id": "text", "node_id": "text", "iteration": "integer"}
NODES: Final = MirroredTable("nodes", key=_OF_NODE, large=("output", "error", "heartbeat", "wait"))
APPROVALS: Final = MirroredTable("approvals", key=_OF_NODE, large=("request", "note", "decision"))
FRAMES: Final = MirroredTable(
    "frames", key={"run_id": "text", "frame_no": "integer"}, large=("body",)
)
REQUESTS: Final = MirroredTable(
    "run_requests", key={"run_id": "text"}, large=("input", "config", "auth", "carried")
)
