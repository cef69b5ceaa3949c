"""Sagas in SQL."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
import structlog
from pydantic import TypeAdapter
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncConnection

from common.db.row_locks import CLOCK, RowLocks, locked
from common.db.rows import from_row
from common.db.unnest import arrays, unnest
from order_service.model.saga import ACTIVE, Saga, SagaKind, SagaState, StepRecord
from order_service.model.saga_command import RenewLease, TakeOverSagas, WriteSaga
from order_service.model.saga_input import CancelInput, Failure, PayInput, SagaInput, StepResults
from order_service.tables import sagas

Owned = tuple[str, int]
"""A saga by (saga_id, epoch): the row as long as nobody else has taken it over."""
SagaRequest = tuple[str, str, str]
"""A saga by the request that began it: (kind, user_id, request_id)."""

_log = structlog.stdlib.get_logger()

_INPUT: Final[dict[SagaKind, TypeAdapter[SagaInput]]] = {
    SagaKind.PAY_ORDER: TypeAdapter(PayInput),
    SagaKind.CANCEL_ORDER: TypeAdapter(CancelInput),
}
_STEPS: Final[TypeAdapter[list[StepRecord]]] = TypeAdapter(list[StepRecord])
_RESULTS: Final[TypeAdapter[StepResults]] = TypeAdapter(StepResults)
_FAILURE: Final[TypeAdapter[Failure | None]] = TypeAdapter(Failure | None)

_second: Final = sa.literal_column("interval '1 second'", sa.Interval)


@dataclass(slots=True)
class LoadedSagas:
    """The sagas that a batch concerns."""

    sagas: dict[str, Saga] = field(default_factory=dict)
    blocked: frozenset[str] = frozenset()
    """Sagas that exist but are locked by another transaction."""
    now: datetime | None = None
    """The database's clock, read after the rows were locked; None if no row was found."""


# -- with an order's transaction -----------------------------------------------------------------

_SAGAS: Final[RowLocks[str]] = RowLocks(sagas, "saga_id")

_by_request = unnest("asked", *sagas.c["kind", "user_id", "request_id"])
_FIND: Final = sa.select(sagas).join_from(
    _by_request, sagas, sa.and_(*(sagas.c[column.key] == column for column in _by_request.c))
)
_of_order = unnest("wanted", sagas.c.order_id)
# By outcome, not by age: the ids of sagas show the clocks of replicas, and what a cancellation
# gives back depends on the attempt that paid. An order is paid at most once.
_PAID_BY: Final = (
    sa.select(sagas.c.order_id, sagas.c.saga_id)
    .join_from(_of_order, sagas, sagas.c.order_id == _of_order.c.order_id)
    .where(
        sagas.c.kind == SagaKind.PAY_ORDER.value,
        sa.or_(
            sagas.c.state == SagaState.COMPLETED.value,
            sa.and_(sagas.c.state == SagaState.RESOLVED.value, sagas.c.failure.is_(sa.null())),
        ),
    )
)

_added = unnest(
    "new",
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
    "lease_until": CLOCK + sa.bindparam("lease_s", type_=sa.Float) * _second,
    "pivot_by": CLOCK + _added.c.time_left_s * _second,
    "attempts": sa.literal(0, sa.Integer),
    "last_error": sa.literal(""),
    "resolution_reason": sa.literal(""),
}
_ADD: Final = sa.insert(sagas).from_select(
    list(_row), sa.select(*_row.values()).order_by(_added.c.saga_id)
)


async def lock(
    connection: AsyncConnection, saga_ids: Collection[str], *, wait_for_locks: bool
) -> LoadedSagas:
    """Lock the sagas (``RowLocks``), whoever owns them."""
    found = await _SAGAS.lock(connection, saga_ids, wait_for_locks=wait_for_locks)
    return LoadedSagas({row.saga_id: _to_saga(row) for row in found.rows}, found.blocked, found.now)


async def find_by_request(
    connection: AsyncConnection, requests: Collection[SagaRequest]
) -> dict[SagaRequest, Saga]:
    """The sagas that these requests began."""
    wanted = [
        {"kind": kind, "user_id": user_id, "request_id": request_id}
        for kind, user_id, request_id in requests
    ]
    rows = await connection.execute(_FIND, arrays(_by_request, wanted))
    return {(row.kind, row.user_id, row.request_id): _to_saga(row) for row in rows}


async def find_payers(connection: AsyncConnection, order_ids: Collection[str]) -> dict[str, str]:
    """The id of the saga that paid each of these orders, by order_id."""
    wanted = [{"order_id": order_id} for order_id in order_ids]
    rows = await connection.execute(_PAID_BY, arrays(_of_order, wanted))
    return {row.order_id: row.saga_id for row in rows}


async def add(
    connection: AsyncConnection, new: Collection[Saga], *, owner: str, lease_s: float
) -> None:
    """Insert new sagas, owned by the replica ``owner`` for ``lease_s`` seconds."""
    if not new:
        return
    rows = [
        {
            "saga_id": saga.saga_id,
            "kind": saga.kind,
            "plan_version": saga.plan_version,
            "order_id": saga.order_id,
            "user_id": saga.user_id,
            "request_id": saga.asked.request_id,
            "state": saga.state,
            "create_time": saga.create_time,
            "update_time": saga.update_time,
            "asked": _INPUT[saga.kind].dump_json(saga.asked).decode(),
            "steps": _STEPS.dump_json(saga.steps).decode(),
            "facts": _RESULTS.dump_json(saga.facts).decode(),
            "time_left_s": saga.time_left_s,
        }
        for saga in new
    ]
    await connection.execute(_ADD, {**arrays(_added, rows), "owner": owner, "lease_s": lease_s})


# -- the journal ---------------------------------------------------------------------------------

# Literals, as in the partial index: the planner would not match it with parameters.
_is_active: Final = sagas.c.state.in_(
    sa.bindparam("active", [state.value for state in ACTIVE], expanding=True, literal_execute=True)
)


def _owned(wanted: sa.TableValuedAlias) -> sa.ColumnElement[bool]:
    """The fence: a replica that lost the saga matches no row, nor does any once it has ended."""
    return sa.and_(sagas.c.saga_id == wanted.c.saga_id, sagas.c.epoch == wanted.c.epoch, _is_active)


_OWNED: Final[RowLocks[Owned]] = RowLocks(
    sagas, "saga_id", "epoch", matches=_owned, columns=("saga_id", "epoch")
)

_written = unnest(
    "written",
    *sagas.c["saga_id", "epoch", "state", "attempts", "last_error", "resolution_reason"],
    steps=sa.Text,
    facts=sa.Text,
    failure=sa.Text,
    lease_s=sa.Float,
    waits=sa.Boolean,
)
_until: Final = CLOCK + _written.c.lease_s * _second
_WRITE: Final = (
    sa.update(sagas)
    .values(
        {
            **{name: sa.cast(_written.c[name], JSONB) for name in ("steps", "facts", "failure")},
            **{
                name: _written.c[name]
                for name in ("state", "attempts", "last_error", "resolution_reason")
            },
            "owner": sa.case((_written.c.waits, sa.null()), else_=sagas.c.owner),
            "lease_until": _until,
            "next_attempt_time": sa.case(
                (
                    sa.and_(
                        _written.c.waits, _written.c.state.in_([state.value for state in ACTIVE])
                    ),
                    _until,
                )
            ),
            "update_time": CLOCK,
        }
    )
    .where(sagas.c.saga_id == _written.c.saga_id, sagas.c.epoch == _written.c.epoch)
    .returning(sagas.c.saga_id, sagas.c.epoch)
)

_renewed = unnest("renewed", *sagas.c["saga_id", "epoch"], lease_s=sa.Float)
# Only of a saga that a replica runs: a late heartbeat must not delay one that was given up.
_RENEW: Final = (
    sa.update(sagas)
    .values(
        lease_until=CLOCK + _renewed.c.lease_s * _second,
        owner=sa.case((_renewed.c.lease_s > 0, sagas.c.owner)),
    )
    .where(
        sagas.c.saga_id == _renewed.c.saga_id,
        sagas.c.epoch == _renewed.c.epoch,
        sagas.c.owner.is_not(None),
    )
)


async def lock_owned(
    connection: AsyncConnection, owned: Collection[Owned], *, wait_for_locks: bool
) -> tuple[set[Owned], frozenset[Owned]]:
    """Lock active sagas under these epochs: those locked, and those blocked.

    The rest are lost: their epoch has changed, or they have ended.
    """
    found = await _OWNED.lock(connection, owned, wait_for_locks=wait_for_locks)
    return {(row.saga_id, row.epoch) for row in found.rows}, found.blocked


async def write(connection: AsyncConnection, writes: Collection[WriteSaga]) -> set[Owned]:
    """Write sagas that still have the writer's epoch; returns which. Lock them first."""
    rows = [
        {
            "saga_id": saga.saga_id,
            "epoch": saga.epoch,
            "state": saga.state,
            "steps": _STEPS.dump_json(saga.steps).decode(),
            "facts": _RESULTS.dump_json(saga.facts).decode(),
            "failure": _FAILURE.dump_json(saga.failure).decode() if saga.failure else None,
            "attempts": saga.attempts,
            "last_error": saga.last_error,
            "resolution_reason": saga.resolution_reason,
            "lease_s": command.lease_s,
            "waits": saga.waits,
        }
        for command in writes
        for saga in (command.saga,)
    ]
    if not rows:
        return set()
    saved = await connection.execute(_WRITE, arrays(_written, rows))
    return {(row.saga_id, row.epoch) for row in saved}


async def renew(connection: AsyncConnection, renewals: Collection[RenewLease]) -> None:
    """Extend leases, or give sagas up. Lock them first."""
    if renewals:
        await connection.execute(_RENEW, arrays(_renewed, renewals))


# -- takeover ------------------------------------------------------------------------------------

_due = locked(
    sagas,
    sa.select(sagas.c.saga_id)
    .where(
        _is_active,
        sagas.c.lease_until < sa.func.now(),
        sa.tuple_(sagas.c.kind, sagas.c.plan_version).in_(sa.bindparam("plans", expanding=True)),
    )
    .limit(sa.bindparam("room")),
    order_by=[sagas.c.lease_until],
    skip_locked=True,
    name="due",
)
_TAKE_OVER: Final = (
    sa.update(sagas)
    .values(
        epoch=sagas.c.epoch + 1,
        owner=sa.bindparam("owner"),
        lease_until=CLOCK + sa.bindparam("lease_s", type_=sa.Float) * _second,
        next_attempt_time=None,
    )
    .where(sagas.c.saga_id == _due.c.saga_id)
    .returning(
        sagas,
        sa.extract("epoch", sagas.c.pivot_by - CLOCK).label("time_left_s"),
        CLOCK.label("now"),
    )
)


@dataclass(frozen=True, slots=True)
class TakenOver:
    """Sagas that a replica took over, and the database's clock at that time."""

    sagas: Sequence[Saga]
    now: datetime | None
    """None if there are no sagas."""


async def take_over(connection: AsyncConnection, command: TakeOverSagas) -> TakenOver:
    """Take sagas over under a new epoch.

    A row that cannot be read is left until its lease expires again, and does not stop the others.
    """
    rows = await connection.execute(
        _TAKE_OVER,
        {
            "owner": command.owner,
            "lease_s": command.lease_s,
            "room": command.room,
            "plans": list(command.plans),
        },
    )
    taken: list[Saga] = []
    now = None
    for row in rows:
        now = row.now if now is None else max(now, row.now)
        try:
            taken.append(_to_saga(row))
        except (ValueError, LookupError, TypeError):
            _log.exception("saga_not_readable", saga_id=row.saga_id)
    return TakenOver(taken, now)


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
_NEWEST_IN_STATE: Final = _NEWEST.where(sagas.c.state == sa.bindparam("state"))


async def read_saga(connection: AsyncConnection, saga_id: str) -> Saga | None:
    """One saga as last journalled."""
    row = (await connection.execute(_ONE, {"saga_id": saga_id})).one_or_none()
    return None if row is None else _to_saga(row)


async def read_latest(connection: AsyncConnection, order_id: str) -> Saga | None:
    """The newest saga of an order."""
    row = (await connection.execute(_LATEST, {"order_id": order_id})).one_or_none()
    return None if row is None else _to_saga(row)


async def read_sagas(
    connection: AsyncConnection, state: SagaState | None, *, before: str, size: int
) -> list[Saga]:
    """At most ``size`` sagas with an id below ``before``, newest first."""
    parameters = {"before": before, "size": size, **({"state": state} if state else {})}
    rows = await connection.execute(_NEWEST_IN_STATE if state else _NEWEST, parameters)
    return [_to_saga(row) for row in rows]


def _to_saga(row: sa.Row[Any]) -> Saga:
    kind = SagaKind(row.kind)
    left_s = getattr(row, "time_left_s", None)
    return from_row(
        Saga,
        row,
        kind=kind,
        asked=_INPUT[kind].validate_python(row.asked),
        steps=_STEPS.validate_python(row.steps),
        state=SagaState(row.state),
        facts=_RESULTS.validate_python(row.facts),
        failure=_FAILURE.validate_python(row.failure),
        time_left_s=None if left_s is None else float(left_s),
        waits=row.owner is None,
    )
