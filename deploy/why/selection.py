"""Which rows belong to an id, and all that was read of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from deploy.why.event import Row


@dataclass(frozen=True, slots=True)
class Selection:
    """The rows of one user that have any of these ids."""

    user_id: str
    order_ids: tuple[str, ...] = ()
    request_ids: tuple[str, ...] = ()
    payment_ids: tuple[str, ...] = ()
    coupon_ids: tuple[str, ...] = ()
    newest: int = 0
    """Of everything that the user has, so many rows of each kind; 0: only those with the ids."""


@dataclass(slots=True)
class Records:
    """The rows of a selection, by kind."""

    orders: list[Row] = field(default_factory=list)
    items: list[Row] = field(default_factory=list)
    sagas: list[Row] = field(default_factory=list)
    accounts: list[Row] = field(default_factory=list)
    entries: list[Row] = field(default_factory=list)
    coupons: list[Row] = field(default_factory=list)
    redemptions: list[Row] = field(default_factory=list)
    payments: list[Row] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)
    """Kinds of which there are more rows than were read."""

    @property
    def of_ids(self) -> bool:
        """Whether there is a row with one of the ids, and not only the accounts of the user."""
        kinds = (self.orders, self.sagas, self.entries, self.coupons, self.redemptions)
        return any(kinds) or bool(self.payments)

    def add(self, other: Records) -> None:
        """Add all that ``other`` has."""
        for one in fields(self):
            getattr(self, one.name).extend(getattr(other, one.name))


async def rows(
    connection: AsyncConnection, statement: sa.Executable, **parameters: object
) -> list[Row]:
    """All rows of the statement."""
    return [row._asdict() for row in await connection.execute(statement, parameters)]


def newest_of(records: Records, kind: str, found: Sequence[Row], newest: int) -> list[Row]:
    """Of rows that were read newest first, the first ``newest``, oldest first.

    One more was read: that there are more is noted.
    """
    if len(found) > newest:
        records.cut.append(kind)
    return list(reversed(found[:newest]))


def step_requests(sagas: Iterable[Row]) -> list[str]:
    """The request_ids under which these sagas call other services, their undos included."""
    found = []
    for saga in sagas:
        for step in steps_of(saga):
            request_id = step.get("request_id") or f"{saga['saga_id']}:{step['name']}"
            found += [request_id, f"{request_id}:undo"]
            if undoes := step.get("undoes"):
                found.append(undoes)
    return found


def steps_of(saga: Row) -> list[dict[str, Any]]:
    """The steps of the saga's journal; a field that has its default is left out there."""
    return [step for step in saga["steps"] if isinstance(step, Mapping)]  # type: ignore[misc]
