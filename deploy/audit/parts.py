"""What one comparison between two books covers: all users, or some that were touched."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import sqlalchemy as sa

from deploy.audit.touched import UNITS, Touched
from deploy.audit.units import USER, batches


@dataclass(frozen=True, slots=True)
class Part:
    """Some users, each whole in every book; None: all."""

    users: tuple[str, ...] | None = None

    def of(self, service: str, sql: str) -> sa.TextClause:
        """The statement on this part of a service's book."""
        if self.users is None:
            return sa.text(sql)
        return UNITS[service][USER].of_ids(sql, self.users)


def parts(service: str, touched: Touched | None) -> Iterator[Part]:
    """The parts in which a service's book is compared with the order service's.

    A user is in exactly one of them, if either book has touched the user.
    """
    if touched is None:
        yield Part()
        return
    either = heapq.merge(touched["order", USER], touched[service, USER])
    for users in batches(user for user, _ in groupby(either)):
        yield Part(users)
