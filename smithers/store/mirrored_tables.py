"""The tables whose rows a mirror copies, and the statements that copy them: by their keys, or all that runs have.

Rows travel as JSON and are read by the names of their columns: the two databases may be a version apart.
"""

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Final

# -- name: weigh_rows
# The existing rows for these keys, and their size. octet_length does not read TOASTed values.
_WEIGH: Final = """
    SELECT T_KEY, WEIGHT AS byte_count FROM unnest(ARRAYS) AS k (KEY) JOIN smithers.TABLE AS t ON (T_KEY) = (K_KEY)"""

# -- name: weigh_all
# The same for all rows of these runs, a page at a time, each run's from the row after the given one.
_WEIGH_ALL: Final = """
    SELECT n.* FROM unnest($1::text[], $2::text[], $3::integer[]) AS k (run_id, node_id, iteration) CROSS JOIN LATERAL (
        SELECT T_KEY, WEIGHT AS byte_count FROM smithers.TABLE AS t
        WHERE t.run_id = k.run_id AND (t.node_id, t.iteration) > (k.node_id, k.iteration)
        ORDER BY t.node_id, t.iteration LIMIT $4) AS n
    ORDER BY n.run_id, n.node_id, n.iteration LIMIT $4"""

# -- name: read_rows
_READ: Final = """
    SELECT to_json(t)::text AS row FROM unnest(ARRAYS) AS k (KEY) JOIN smithers.TABLE AS t ON (T_KEY) = (K_KEY)"""

# -- name: replace_rows
_DELETE: Final = (
    "DELETE FROM smithers.TABLE AS t USING unnest(ARRAYS) AS k (KEY) WHERE (T_KEY) = (K_KEY)"
)
_INSERT: Final = """
    INSERT INTO smithers.TABLE SELECT t.* FROM unnest($1::text[]) AS c (row)
    CROSS JOIN LATERAL json_populate_record(NULL::smithers.TABLE, c.row::json) AS t"""


class MirroredTable:
    """The statements that copy the rows of one table."""

    def __init__(self, name: str, *, key: Mapping[str, str], large: Sequence[str]) -> None:
        """`key`: its columns, each with its type; `large`: the columns that make a row large."""
        words = {
            "TABLE": name,
            "ARRAYS": ", ".join(f"${n}::{kind}[]" for n, kind in enumerate(key.values(), 1)),
            "T_KEY": ", ".join(f"t.{column}" for column in key),
            "K_KEY": ", ".join(f"k.{column}" for column in key),
            "KEY": ", ".join(key),
            "WEIGHT": " + ".join(f"coalesce(octet_length(t.{column}), 0)" for column in large),
        }
        self.weigh, self.weigh_all, self.read, self.delete, self.insert = (
            reduce(lambda text, word: text.replace(*word), words.items(), template)
            for template in (_WEIGH, _WEIGH_ALL, _READ, _DELETE, _INSERT)
        )


_OF_NODE: Final = {"run_id": "text", "node_id": "text", "iteration": "integer"}
NODES: Final = MirroredTable("nodes", key=_OF_NODE, large=("output", "error", "heartbeat", "wait"))
APPROVALS: Final = MirroredTable("approvals", key=_OF_NODE, large=("request", "note", "decision"))
FRAMES: Final = MirroredTable(
    "frames", key={"run_id": "text", "frame_no": "integer"}, large=("body",)
)
REQUESTS: Final = MirroredTable(
    "run_requests", key={"run_id": "text"}, large=("input", "config", "auth", "carried")
)
