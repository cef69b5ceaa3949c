"""Sagas in SQL."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Final

import sqlalchemy as sa
from pydantic import TypeAdapter
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from common.db.keyset import read_readable
from common.db.row_locks import CLOCK, AlsoRead, Locked, RowLocks
from common.db.rows import UNREADABLE, from_row, readable
from common.db.statements import Connection, Row
from common.db.unnest import arrays, same, unnest
from common.db.writes import Write
from common.metrics import from_zero
from order_service.model.saga import (
    Saga,
    SagaKind,
    SagaOwner,
    SagaRequest,
    SagaState,
    StepRecord,
)
from order_service.model.saga_input import CancelInput, Failure, PayInput, SagaInput, StepResults
from order_service.tables import sagas

_INPUT: Final[dict[SagaKind, TypeAdapter[SagaInput]]] = {
    SagaKind.PAY_ORDER: TypeAdapter(PayInput),
    SagaKind.CANCEL_ORDER: TypeAdapter(CancelInput),
}
from_zero(UNREADABLE, ["saga"])
_STEPS: Final[TypeAdapter[list[StepRecord]]] = TypeAdapter(list[StepRecord])
_RESULTS: Final[TypeAdapter[StepResults]] = TypeAdapter(StepResults)
_FAILURE: Final[TypeAdapter[Failure | None]] = TypeAdapter(Failure | None)

_OWN_COLUMNS: Final = (
    *("saga_id", "kind", "plan_version", "order_id", "user_id", "epoch", "snapshot", "state"),
    *("attempts", "waits_for", "last_error", "resolution_reason", "create_time", "update_time"),
)
"""Columns that are fields of a saga as they are."""
SECOND: Final = sa.literal_column("interval '1 second'", sa.Interval)


# -- with an order's transaction -----------------------------------------------------------------

_SAGAS: Final[RowLocks[str]] = RowLocks(sagas, "saga_id")
_OWNERS: Final[RowLocks[str]] = RowLocks(sagas, "saga_id", columns=("saga_id", "epoch", "state"))

_by_request = unnest("asked", *sagas.c["kind", "user_id", "request_id"])
_FIND: Final = sa.select(sagas).join_from(_by_request, sagas, same(sagas, _by_request))
_of_order = unnest("wanted", sagas.c.order_id)
# By outcome, not by age: the ids of sagas show the clocks of replicas, and what a cancellation
# gives back depends on the attempt that paid. An order is paid at most once.
_PAID_BY: Final = (
    sa.select(sagas.c.order_id, sagas.c.saga_id)
    .join_from(_of_order, sagas, same(sagas, _of_order))
    .where(
        sagas.c.kind == SagaKind.PAY_ORDER.value,
        sa.or_(
            sagas.c.state == SagaState.COMPLETED.value,
            sa.and_(sagas.c.state == SagaState.RESOLVED.value, sagas.c.failure.is_(sa.null())),
        ),
    )
)

_added = unnest(
    "new_saga",
    *sagas.c["saga_id", "kind", "plan_version", "order_id", "user_id", "request_id", "state"],
    # The batch's time, from which the runner's clock starts: no step begins before its saga.
    *sagas.c["create_time", "update_time"],
    asked=sa.Text,
    steps=sa.Text,
    facts=sa.Text,
    time_left_s=sa.Float,
)
_row: Final = {
    **{column.key: column for column in _added.c if column.key != "time_left_s"},
    **{name: sa.cast(_added.c[name], JSONB) for name in ("asked", "steps", "facts")},
    "epoch": sa.literal(1, sa.BigInteger),
    "owner": sa.bindparam("owner", type_=sa.Text),
    "lease_until": CLOCK + sa.bindparam("lease_s", type_=sa.Float) * SECOND,
    "pivot_by": CLOCK + _added.c.time_left_s * SECOND,
    "snapshot": sa.literal(0, sa.BigInteger),
    "attempts": sa.literal(0, sa.Integer),
    "last_error": sa.literal(""),
    "resolution_reason": sa.literal(""),
}
_ADD: Final = sa.insert(sagas).from_select(
    list(_row), sa.select(*_row.values()).order_by(_added.c.saga_id)
)


async def lock(
    connection: Connection,
    saga_ids: Collection[str],
    *,
    wait_for_locks: bool,
    also: AlsoRead | None = None,
) -> Locked[str, Saga]:
    """Lock the sagas (``RowLocks``), without regard to their owner."""
    locked = await _SAGAS.lock(connection, saga_ids, wait_for_locks=wait_for_locks, also=also)
    return locked.map(to_saga)


async def lock_owners(
    connection: Connection,
    saga_ids: Collection[str],
    *,
    wait_for_locks: bool,
    also: AlsoRead | None = None,
) -> Locked[str, SagaOwner]:
    """As ``lock``, for those who write a saga that they have, and only if it is still theirs."""
    locked = await _OWNERS.lock(connection, saga_ids, wait_for_locks=wait_for_locks, also=also)
    return locked.map(lambda row: SagaOwner(row.epoch, SagaState(row.state)))


async def find_by_request(
    connection: Connection, requests: Collection[SagaRequest]
) -> dict[SagaRequest, Saga]:
    """The sagas that these requests began."""
    rows = await connection.execute(_FIND, arrays(_by_request, requests))
    return {SagaRequest(row.kind, row.user_id, row.request_id): to_saga(row) for row in rows}


async def find_payers(connection: Connection, order_ids: Collection[str]) -> dict[str, str]:
    """The id of the saga that paid each of these orders, by order_id."""
    wanted = [{"order_id": order_id} for order_id in order_ids]
    rows = await connection.execute(_PAID_BY, arrays(_of_order, wanted))
    return {row.order_id: row.saga_id for row in rows}


def adding(new: Collection[Saga], *, owner: str, lease_s: float) -> list[Write]:
    """The write of new sagas, owned by the replica ``owner`` for ``lease_s`` seconds."""
    if not new:
        return []
    rows = [
        {
            **to_row(saga),
            "request_id": saga.asked.request_id,
            "asked": _INPUT[saga.kind].dump_json(saga.asked).decode(),
            "time_left_s": saga.time_left_s,
        }
        for saga in new
    ]
    parameters = {**arrays(_added, rows), "owner": owner, "lease_s": lease_s}
    return [Write(_ADD, parameters, len(rows))]


# -- reads ---------------------------------------------------------------------------------------

_ONE: Final = sa.select(sagas).where(sagas.c.saga_id == sa.bindparam("saga_id"))
_LATEST: Final = (
    sa.select(sagas)
    .where(sagas.c.order_id == sa.bindparam("order_id"))
    .order_by(sagas.c.create_time.desc(), sagas.c.saga_id.desc())
    .limit(1)
)
_NEWEST: Final = (
    sa.select(sagas)
    .where(sagas.c.saga_id < sa.bindparam("before", type_=sagas.c.saga_id.type))
    .order_by(sagas.c.saga_id.desc())
    .limit(sa.bindparam("size"))
)
_IN_STATE: Final = sagas.c.state == sa.bindparam("state")
# With all kinds, for the index of SAGA_REQUEST_ONCE: an index of its own would cost every saga.
_OF_USER: Final = sa.and_(
    sagas.c.kind == sa.any_(sa.literal([*SagaKind], ARRAY(sa.Text))),
    sagas.c.user_id == sa.bindparam("user_id"),
)
_LISTS: Final = {
    (False, False): _NEWEST,
    (True, False): _NEWEST.where(_IN_STATE),
    (False, True): _NEWEST.where(_OF_USER),
    (True, True): _NEWEST.where(_IN_STATE, _OF_USER),
}
"""Lists of sagas, by whether the state and the user are given."""


async def read_saga(connection: Connection, saga_id: str) -> Saga | None:
    """One saga as last journalled."""
    row = (await connection.execute(_ONE, {"saga_id": saga_id})).one_or_none()
    return None if row is None else to_saga(row)


async def read_latest(connection: Connection, order_id: str) -> Saga | None:
    """The newest saga of an order."""
    row = (await connection.execute(_LATEST, {"order_id": order_id})).one_or_none()
    return None if row is None else to_saga(row)


async def read_sagas(
    connection: Connection,
    state: SagaState | None,
    user_id: str | None,
    *,
    before: str,
    size: int,
) -> list[Saga]:
    """At most ``size`` sagas with an id below ``before``, newest first."""
    parameters = {"before": before, "size": size, "state": state, "user_id": user_id}

    async def convert(rows: Sequence[Row]) -> list[Saga]:
        return readable_sagas(rows)

    return await read_readable(
        connection,
        _LISTS[state is not None, user_id is not None],
        parameters,
        lambda row: {"before": row.saga_id},
        convert,
    )


def to_row(saga: Saga) -> dict[str, object]:
    """The columns of a saga, those in JSON as text."""
    return {
        **{name: getattr(saga, name) for name in _OWN_COLUMNS},
        # Without defaults: most fields of most steps have theirs.
        "steps": _STEPS.dump_json(saga.steps, exclude_defaults=True).decode(),
        "facts": _RESULTS.dump_json(saga.facts).decode(),
        "failure": _FAILURE.dump_json(saga.failure).decode() if saga.failure else None,
    }


def readable_sagas(rows: Iterable[Row]) -> list[Saga]:
    """The sagas of these rows, without those that this release cannot read (``readable``)."""
    return readable("saga", rows, to_saga)


def to_saga(row: Row) -> Saga:
    kind = SagaKind(row.kind)
    left_s = getattr(row, "time_left_s", None)
    return from_row(
        Saga,
        row,
        kind=kind,
        asked=_INPUT[kind].validate_json(row.asked),
        steps=_STEPS.validate_json(row.steps),
        state=SagaState(row.state),
        facts=_RESULTS.validate_json(row.facts),
        failure=None if row.failure is None else _FAILURE.validate_json(row.failure),
        time_left_s=None if left_s is None else float(left_s),
        waits=row.owner is None,
    )
