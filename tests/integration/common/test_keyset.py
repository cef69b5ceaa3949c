"""Lists by time and id in pages: every row once, newest first."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa
from google.protobuf.wrappers_pb2 import StringValue

from common.db.database import Database
from common.db.keyset import newest_first, rows_of
from common.db.row_locks import TIME
from common.db.unnest import arrays, unnest
from common.ids import new_id
from common.paging import Found, Page, TimePosition

START = datetime(2026, 1, 1, tzinfo=UTC)
_ROWS = unnest("listed", time=TIME, id=sa.Uuid(as_uuid=False))
_LIST = newest_first(sa.select(_ROWS), _ROWS.c.time, _ROWS.c.id)


@dataclass(frozen=True)
class Row:
    time: datetime
    id: str


async def test_pages_hold_every_row_once_newest_first(database: Database) -> None:
    """Three rows have each time: within a time, ids are in descending order."""
    times = [START + timedelta(microseconds=number // 3) for number in range(10)]
    rows = [Row(time, new_id()) for time in times]
    listed: list[str] = []
    token = ""
    async with database.reads.connect() as connection:
        while True:
            page = Page.of(4, token, filters=["mine"])
            parameters = arrays(_ROWS, rows) | rows_of(page)
            found = (await connection.execute(_LIST, parameters)).all()
            listing = Found(page, found, lambda row: TimePosition(row.time, row.id).key)
            cut, token = listing.messages(lambda row: StringValue(value=row.id))
            assert len(cut) <= 4
            listed += [message.value for message in cut]
            if not token:
                break
    in_order = sorted(rows, key=lambda row: (row.time, row.id), reverse=True)
    assert listed == [row.id for row in in_order]
