"""List a run's frames, each with its whole tree, a page at a time."""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

from pydantic import Field

from gateway.bodies import write_json
from gateway.exchange import Exchange
from gateway.fields import MAX_INTEGER, Digits, Query
from gateway.paging import MAX_PAGE_BYTES, Page, next_link
from gateway.responses import FrameAnswer
from smithers.engine.frames import mounted_tasks, restore
from smithers.ids import RunId
from smithers.store.node_reads import FrameRow, list_frames
from smithers.store.reads import run_exists
from smithers.store.refusals import RunNotFound

MAX_FRAMES: Final = 1_000


@dataclass(frozen=True, slots=True)
class WholeFrame:
    """A frame with its tree restored."""

    row: FrameRow
    xml_json: str


class FramesQuery(Query):
    """Which of a run's frames."""

    limit: Digits = Field(50, ge=1, le=MAX_FRAMES)
    after_frame_no: Digits = Field(-1, ge=-1, le=MAX_INTEGER)
    before_frame_no: Digits = Field(MAX_INTEGER, ge=0, le=MAX_INTEGER)
    order: Literal["asc", "desc"] = "desc"


async def get_frames(exchange: Exchange, query: FramesQuery) -> Page[list[FrameAnswer]]:
    """List a run's frames: the newest first, or with `order=asc` the oldest; a page has at most 4 MiB."""
    is_ascending = query.order == "asc"
    run_id = exchange.run_id()
    pool = exchange.database.pool
    rows, lead_count, has_more = await list_frames(
        pool,
        run_id,
        above=query.after_frame_no,
        below=query.before_frame_no,
        is_ascending=is_ascending,
        limit=query.limit,
        page_bytes=MAX_PAGE_BYTES,
    )
    if not rows and not await run_exists(pool, run_id):
        raise RunNotFound
    page = fit_page(restore_all(rows, lead_count), is_ascending=is_ascending)
    link = None
    if page and (has_more or len(page) < len(rows) - lead_count):
        edge = page[-1].row.frame_no
        link = next_link(
            exchange.request, **{"afterFrameNo" if is_ascending else "beforeFrameNo": edge}
        )
    return Page([_frame(run_id, frame) for frame in page], link)


def restore_all(rows: Iterable[FrameRow], lead_count: int) -> Iterator[WholeFrame]:
    """Restore frames' trees, in ascending order; the first ones are only the base of the others."""
    xml_json = ""
    for number, row in enumerate(rows):
        xml_json = restore(xml_json, row.encoding, row.body)
        if number >= lead_count:
            yield WholeFrame(row, xml_json)


def fit_page(frames: Iterable[WholeFrame], *, is_ascending: bool) -> list[WholeFrame]:
    """Keep the frames that fit into a page, at least one: if ascending the first ones, else the last, newest first."""
    kept: deque[WholeFrame] = deque()
    size = 0
    for frame in frames:
        size += len(frame.xml_json)
        if is_ascending and kept and size > MAX_PAGE_BYTES:
            break
        kept.append(frame)
        while size > MAX_PAGE_BYTES and len(kept) > 1:
            size -= len(kept.popleft().xml_json)
    return list(kept) if is_ascending else list(reversed(kept))


def _frame(run_id: RunId, frame: WholeFrame) -> FrameAnswer:
    row = frame.row
    mounted = mounted_tasks(frame.xml_json)
    index = [
        {"nodeId": key.node_id, "iteration": key.iteration, "ordinal": number}
        for number, key in enumerate(mounted)
    ]
    return {
        "runId": run_id,
        "frameNo": row.frame_no,
        "createdAtMs": row.created_ms,
        "xmlJson": frame.xml_json,
        "xmlHash": row.xml_hash,
        "encoding": row.encoding,
        "mountedTaskIdsJson": write_json([f"{key.node_id}::{key.iteration}" for key in mounted]),
        "taskIndexJson": write_json(index),
        "note": None,
    }
