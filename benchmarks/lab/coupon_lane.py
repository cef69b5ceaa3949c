"""The lane of the coupons: a batch of users is decided on the locked campaign."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import sqlalchemy as sa

from benchmarks.lab.size import Request
from common.batching.outcomes import Outcome, RowLocked
from common.db.statements import Connection

_LOCK: Final = "SELECT quantity, issued FROM campaigns WHERE id = :campaign FOR NO KEY UPDATE"
_LOCK_ALL: Final = sa.text(_LOCK)
_LOCK_FREE: Final = sa.text(f"{_LOCK} SKIP LOCKED")
_HAVE_ONE: Final = sa.text(
    "SELECT user_id FROM coupons"
    " WHERE campaign = :campaign AND user_id = ANY(CAST(:users AS bigint[]))"
)
_INSERT: Final = sa.text(
    "INSERT INTO coupons (campaign, user_id)"
    " SELECT CAST(:campaign AS bigint), unnest(CAST(:users AS bigint[]))"
)
_COUNT: Final = sa.text("UPDATE campaigns SET issued = issued + :added WHERE id = :campaign")


class Decider:
    """All commands of the experiment are about the one campaign."""

    async def __call__(
        self, connection: Connection, commands: Sequence[object], *, wait_for_locks: bool
    ) -> list[Outcome[str]]:
        requests = [command for command in commands if isinstance(command, Request)]
        campaign = requests[0].thing
        lock = _LOCK_ALL if wait_for_locks else _LOCK_FREE
        row = (await connection.execute(lock, {"campaign": campaign})).one_or_none()
        if row is None:
            return [RowLocked(campaign) for _ in requests]
        users = [request.user for request in requests]
        found = await connection.execute(_HAVE_ONE, {"campaign": campaign, "users": users})
        have_one = set(found.scalars())
        left: int = row.quantity - row.issued
        outcomes: list[Outcome[str]] = []
        issued: list[int] = []
        for request in requests:
            if request.user in have_one:
                outcomes.append("already issued")
            elif not left:
                outcomes.append("sold out")
            else:
                left -= 1
                have_one.add(request.user)
                issued.append(request.user)
                outcomes.append("")
        if issued:
            await connection.execute(_INSERT, {"campaign": campaign, "users": issued})
            await connection.execute(_COUNT, {"campaign": campaign, "added": len(issued)})
        return outcomes
