"""The sagas' rows as orders, their callers and operators need them. Never commits."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from common.db.unnest import arrays, unnest
from order_service.model.sagas import Kind, Saga, State
from order_service.saga_tables import sagas
from order_service.store.sagas import Request, to_saga

_locked = unnest("wanted", saga_id=sa.UUID(as_uuid=False))


def _locking(*, skip_locked: bool) -> sa.Select[Any]:
    """The wanted rows, locked in ascending order."""
    return (
        sa.select(sagas)
        .join_from(_locked, sagas, sagas.c.saga_id == _locked.c.saga_id)
        .order_by(sagas.c.saga_id)
        .with_for_update(of=sagas, key_share=True, skip_locked=skip_locked)
    )


_LOCK: Final = _locking(skip_locked=False)
_LOCK_FREE: Final = _locking(skip_locked=True)
_KNOWN: Final = sa.select(sagas.c.saga_id).join_from(
    _locked, sagas, sagas.c.saga_id == _locked.c.saga_id
)


async def lock_whole(
    connection: AsyncConnection, saga_ids: Collection[str], *, wait_for_locks: bool
) -> tuple[dict[str, Saga], set[str]]:
    """Lock sagas in ascending order, whoever owns them; and the ids that somebody else holds."""
    parameters = arrays("wanted", saga_id=sorted(saga_ids))
    rows = await connection.execute(_LOCK if wait_for_locks else _LOCK_FREE, parameters)
    found = {row.saga_id: to_saga(row) for row in rows}
    if wait_for_locks or len(found) == len(saga_ids):
        return found, set()
    known = await connection.execute(_KNOWN, parameters)
    return found, set(known.scalars()) - set(found)


_asked = unnest("asked", kind=sa.Text, user_id=sa.Text, request_id=sa.Text)
_FIND: Final = sa.select(sagas).join_from(
    _asked,
    sagas,
    sa.and_(
        sagas.c.kind == _asked.c.kind,
        sagas.c.user_id == _asked.c.user_id,
        sagas.c.request_id == _asked.c.request_id,
    ),
)
_wanted = unnest("wanted", order_id=sa.UUID(as_uuid=False))
# By what became of it, not by its id: those tell the clocks of replicas, and which attempt paid
# decides what is given back. An order is paid at most once.
_PAID_BY: Final = (
    sa.select(sagas.c.order_id, sagas.c.saga_id)
    .join_from(_wanted, sagas, sagas.c.order_id == _wanted.c.order_id)
    .where(
        sagas.c.kind == Kind.PAY_ORDER.value,
        sa.or_(
            sagas.c.state == State.COMPLETED.value,
            sa.and_(sagas.c.state == State.RESOLVED.value, sagas.c.failure.is_(sa.null())),
        ),
    )
)
_ONE: Final = sa.select(sagas).where(sagas.c.saga_id == sa.bindparam("saga_id"))
_LATEST: Final = (
    sa.select(sagas)
    .where(sagas.c.order_id == sa.bindparam("order_id"))
    .order_by(sagas.c.create_time.desc(), sagas.c.saga_id.desc())
    .limit(1)
)


def _page(*filters: sa.ColumnElement[bool]) -> sa.Select[Any]:
    return (
        sa.select(sagas)
        .where(sagas.c.saga_id < sa.bindparam("before", type_=sa.UUID(as_uuid=False)), *filters)
        .order_by(sagas.c.saga_id.desc())
        .limit(sa.bindparam("size"))
    )


_PAGE: Final = _page()
_PAGE_IN_STATE: Final = _page(sagas.c.state == sa.bindparam("state"))


async def find(connection: AsyncConnection, requests: Collection[Request]) -> dict[Request, Saga]:
    """The sagas that these requests began."""
    rows = await connection.execute(
        _FIND,
        arrays(
            "asked",
            kind=[request[0] for request in requests],
            user_id=[request[1] for request in requests],
            request_id=[request[2] for request in requests],
        ),
    )
    return {(row.kind, row.user_id, row.request_id): to_saga(row) for row in rows}


async def paying(connection: AsyncConnection, order_ids: Collection[str]) -> dict[str, str]:
    """Of each of these orders that was paid, the saga that did."""
    rows = await connection.execute(_PAID_BY, arrays("wanted", order_id=list(order_ids)))
    return {row.order_id: row.saga_id for row in rows}


async def read(connection: AsyncConnection, saga_id: str) -> Saga | None:
    row = (await connection.execute(_ONE, {"saga_id": saga_id})).one_or_none()
    return None if row is None else to_saga(row)


async def read_latest(connection: AsyncConnection, order_id: str) -> Saga | None:
    """The saga of an order that began last."""
    row = (await connection.execute(_LATEST, {"order_id": order_id})).one_or_none()
    return None if row is None else to_saga(row)


async def read_page(
    connection: AsyncConnection, state: State | None, *, before: str, size: int
) -> list[Saga]:
    """At most ``size`` sagas, newest first; their ids are in the order of their beginning."""
    parameters: dict[str, object] = {"before": before, "size": size}
    if state is None:
        rows = await connection.execute(_PAGE, parameters)
    else:
        rows = await connection.execute(_PAGE_IN_STATE, {**parameters, "state": state.value})
    return [to_saga(row) for row in rows]
