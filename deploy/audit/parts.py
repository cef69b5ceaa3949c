"""What one comparison between two books covers: all users, or some that were touched."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import sqlalchemy as sa

from deploy.audit import balance, coupon, order, payment
from deploy.audit.merge_join import merge_join, stream
from deploy.audit.snapshots import Books
from deploy.audit.units import USER, Units

USERS_MAX: Final = 500
"""In one batch. Their rows are streamed, however many they are."""

_UNITS: Final[Mapping[str, Units]] = {
    "balance": balance.UNITS,
    "coupon": coupon.UNITS,
    "order": order.UNITS,
    "payment": payment.UNITS,
}

Since = Mapping[str, datetime]
"""By service, a time of its database's clock."""


@dataclass(frozen=True, slots=True)
class Part:
    """Some users, each whole in every book; None: all."""

    users: tuple[str, ...] | None = None

    def of(self, service: str, sql: str) -> sa.TextClause:
        """The statement on this part of a service's book."""
        if self.users is None:
            return sa.text(sql)
        return _UNITS[service][USER].of_ids(sql, self.users)


async def parts(books: Books, service: str, since: Since | None) -> AsyncIterator[Part]:
    """The parts in which a service's book is compared with the order service's.

    A user is in exactly one of them, if either book has touched the user since then.
    """
    if since is None:
        yield Part()
        return
    touched = (
        stream(books[one], _UNITS[one][USER].touched_ids(since[one]), 1)
        for one in ("order", service)
    )
    users: list[str] = []
    async for (user,), _, _ in merge_join(*touched):
        users.append(user)
        if len(users) == USERS_MAX:
            yield Part(tuple(users))
            users.clear()
    if users:
        yield Part(tuple(users))
