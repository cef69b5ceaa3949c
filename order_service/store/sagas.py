"""The sagas' SQL: set-based statements, each for a whole batch. Never commits.

What is written carries ``@now`` for the times of this write; the statement puts the database's
clock in their place.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa
import structlog
from pydantic import TypeAdapter
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncConnection

from common.db.unnest import arrays, unnest
from order_service.model.sagas import (
    MOVING,
    Asked,
    CancelAsked,
    Facts,
    Failure,
    Kind,
    PayAsked,
    Saga,
    State,
    StepRecord,
)
from order_service.saga_tables import sagas

_log = structlog.stdlib.get_logger()

_ASKED: Final[dict[Kind, TypeAdapter[Asked]]] = {
    Kind.PAY_ORDER: TypeAdapter(PayAsked),
    Kind.CANCEL_ORDER: TypeAdapter(CancelAsked),
}
_STEPS: Final[TypeAdapter[list[StepRecord]]] = TypeAdapter(list[StepRecord])
_FACTS: Final[TypeAdapter[Facts]] = TypeAdapter(Facts)
_FAILURE: Final[TypeAdapter[Failure | None]] = TypeAdapter(Failure | None)

_now: Final = sa.func.clock_timestamp(type_=sa.DateTime(timezone=True))
_second: Final = sa.literal_column("interval '1 second'", sa.Interval)


def _timed(steps: sa.ColumnElement[str]) -> sa.ColumnElement[object]:
    """The steps with the database's time in the place of ``@now``."""
    return sa.cast(sa.func.replace(steps, '"@now"', sa.cast(sa.func.to_json(_now), sa.Text)), JSONB)


# -- begin ---------------------------------------------------------------------------------------

_new = unnest(
    "new",
    saga_id=sa.UUID(as_uuid=False),
    kind=sa.Text,
    plan_version=sa.Integer,
    order_id=sa.UUID(as_uuid=False),
    user_id=sa.Text,
    request_id=sa.Text,
    asked=sa.Text,
    steps=sa.Text,
    facts=sa.Text,
    owner=sa.Text,
    lease_s=sa.Float,
    time_left_s=sa.Float,
)
_added: Final = {
    "saga_id": _new.c.saga_id,
    "kind": _new.c.kind,
    "plan_version": _new.c.plan_version,
    "order_id": _new.c.order_id,
    "user_id": _new.c.user_id,
    "request_id": _new.c.request_id,
    "asked": sa.cast(_new.c.asked, JSONB),
    "state": sa.literal(State.RUNNING.value),
    "steps": sa.cast(_new.c.steps, JSONB),
    "facts": sa.cast(_new.c.facts, JSONB),
    "epoch": sa.literal(1, sa.BigInteger),
    "owner": _new.c.owner,
    "lease_until": _now + _new.c.lease_s * _second,
    "pivot_by": _now + _new.c.time_left_s * _second,
    "attempts": sa.literal(0, sa.Integer),
    "last_error": sa.literal(""),
    "resolution_reason": sa.literal(""),
    "create_time": _now,
    "update_time": _now,
}
_ADD: Final = sa.insert(sagas).from_select(
    list(_added), sa.select(*_added.values()).order_by(_new.c.saga_id)
)


@dataclass(frozen=True, slots=True)
class Begun:
    """A saga's first row: whose it is, and for how long."""

    saga: Saga
    owner: str
    lease_s: float


async def add(connection: AsyncConnection, begun: Sequence[Begun]) -> None:
    """Write new sagas down."""
    rows = [row.saga for row in begun]
    if not rows:
        return
    await connection.execute(
        _ADD,
        arrays(
            "new",
            saga_id=[row.saga_id for row in rows],
            kind=[row.kind.value for row in rows],
            plan_version=[row.plan_version for row in rows],
            order_id=[row.order_id for row in rows],
            user_id=[row.user_id for row in rows],
            request_id=[row.asked.request_id for row in rows],
            asked=[_ASKED[row.kind].dump_json(row.asked).decode() for row in rows],
            steps=[_STEPS.dump_json(row.steps).decode() for row in rows],
            facts=[_FACTS.dump_json(row.facts).decode() for row in rows],
            owner=[row.owner for row in begun],
            lease_s=[row.lease_s for row in begun],
            time_left_s=[row.time_left_s for row in rows],
        ),
    )


# -- journal -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Write:
    """One saga as it is to be written down, by the right of its epoch."""

    saga_id: str
    epoch: int
    state: str
    steps: str
    facts: str
    failure: str | None
    attempts: int
    last_error: str
    resolution_reason: str
    lease_s: float
    """How long nobody else is to touch it."""
    waits: bool
    """Nobody is at work on it meanwhile: after that time it is due."""

    @classmethod
    def of(cls, saga: Saga, lease_s: float) -> Write:
        return cls(
            saga.saga_id,
            saga.epoch,
            saga.state.value,
            _STEPS.dump_json(saga.steps).decode(),
            _FACTS.dump_json(saga.facts).decode(),
            _FAILURE.dump_json(saga.failure).decode() if saga.failure else None,
            saga.attempts,
            saga.last_error,
            saga.resolution_reason,
            lease_s,
            saga.waits,
        )


@dataclass(frozen=True, slots=True)
class Renew:
    """The owner is still at work; with no time at all, it lets go."""

    saga_id: str
    epoch: int
    lease_s: float


# Literally as in the partial index, which the planner would not recognise behind parameters.
_is_moving: Final = sagas.c.state.in_(
    sa.bindparam("moving", [state.value for state in MOVING], expanding=True, literal_execute=True)
)
_mine = unnest("mine", saga_id=sa.UUID(as_uuid=False), epoch=sa.BigInteger)
# The fence: whoever has lost the saga matches no row, nor does anybody once it has ended.
_is_mine: Final = sa.and_(
    sagas.c.saga_id == _mine.c.saga_id, sagas.c.epoch == _mine.c.epoch, _is_moving
)


def _locking(*, skip_locked: bool) -> sa.Select[tuple[object, ...]]:
    """Each saga of the batch: whether its epoch was ours as last seen, and whether we hold it."""
    held = (
        sa.select(sagas.c.saga_id, sagas.c.epoch)
        .join_from(_mine, sagas, _is_mine)
        .order_by(sagas.c.saga_id)
        .with_for_update(of=sagas, key_share=True, skip_locked=skip_locked)
        .cte("held")
        .prefix_with("MATERIALIZED", dialect="postgresql")
    )
    return sa.select(
        _mine.c.saga_id,
        _mine.c.epoch,
        sagas.c.saga_id.is_not(None).label("seen"),
        held.c.saga_id.is_not(None).label("held"),
    ).select_from(
        _mine.outerjoin(sagas, _is_mine).outerjoin(
            held, sa.and_(held.c.saga_id == _mine.c.saga_id, held.c.epoch == _mine.c.epoch)
        )
    )


_LOCK: Final = _locking(skip_locked=False)
_LOCK_FREE: Final = _locking(skip_locked=True)

_written = unnest(
    "written",
    saga_id=sa.UUID(as_uuid=False),
    epoch=sa.BigInteger,
    state=sa.Text,
    steps=sa.Text,
    facts=sa.Text,
    failure=sa.Text,
    attempts=sa.Integer,
    last_error=sa.Text,
    resolution_reason=sa.Text,
    lease_s=sa.Float,
    waits=sa.Boolean,
)
_until: Final = _now + _written.c.lease_s * _second
_moves: Final = _written.c.state.in_([state.value for state in MOVING])
_WRITE: Final = (
    sa.update(sagas)
    .values(
        state=_written.c.state,
        steps=_timed(_written.c.steps),
        facts=sa.cast(_written.c.facts, JSONB),
        failure=sa.cast(_written.c.failure, JSONB),
        attempts=_written.c.attempts,
        last_error=_written.c.last_error,
        resolution_reason=_written.c.resolution_reason,
        owner=sa.case((_written.c.waits, sa.null()), else_=sagas.c.owner),
        lease_until=_until,
        next_attempt_time=sa.case((sa.and_(_written.c.waits, _moves), _until)),
        update_time=_now,
    )
    .where(sagas.c.saga_id == _written.c.saga_id, sagas.c.epoch == _written.c.epoch)
    .returning(sagas.c.saga_id, sagas.c.epoch)
)

_renewed = unnest("renewed", saga_id=sa.UUID(as_uuid=False), epoch=sa.BigInteger, lease_s=sa.Float)
# Only of a saga that somebody is at work on: a heartbeat that comes late must not hold up one that
# was let go.
_RENEW: Final = (
    sa.update(sagas)
    .values(
        lease_until=_now + _renewed.c.lease_s * _second,
        owner=sa.case((_renewed.c.lease_s > 0, sagas.c.owner)),
    )
    .where(
        sagas.c.saga_id == _renewed.c.saga_id,
        sagas.c.epoch == _renewed.c.epoch,
        sagas.c.owner.is_not(None),
    )
)

Request = tuple[str, str, str]
"""A saga by (kind, user_id, request_id)."""

Mine = tuple[str, int]
"""A saga and the epoch that somebody believes to own it by."""


async def lock(
    connection: AsyncConnection, mine: Collection[Mine], *, wait_for_locks: bool
) -> tuple[set[Mine], set[Mine]]:
    """Lock sagas in ascending order: those that are ours, and those that somebody else holds.

    The rest are lost: their epoch is not ours any more.
    """
    rows = sorted(mine)
    found = await connection.execute(
        _LOCK if wait_for_locks else _LOCK_FREE,
        arrays("mine", saga_id=[row[0] for row in rows], epoch=[row[1] for row in rows]),
    )
    ours, held = set(), set()
    for row in found:
        if row.held:
            ours.add((row.saga_id, row.epoch))
        elif row.seen and not wait_for_locks:
            held.add((row.saga_id, row.epoch))
    return ours, held


async def write(connection: AsyncConnection, writes: Collection[Write]) -> set[Mine]:
    """Write sagas down whose epoch is the writer's; returns which those were. Lock them first."""
    rows = sorted(writes, key=lambda row: row.saga_id)
    if not rows:
        return set()
    columns = {name: [getattr(row, name) for row in rows] for name in _written.c.keys()}  # noqa: SIM118
    saved = await connection.execute(_WRITE, arrays("written", **columns))
    return {(row.saga_id, row.epoch) for row in saved}


async def renew(connection: AsyncConnection, renewals: Collection[Renew]) -> None:
    """Extend leases, or give them up. Lock the sagas first."""
    rows = sorted(renewals, key=lambda row: row.saga_id)
    if not rows:
        return
    columns = {name: [getattr(row, name) for row in rows] for name in _renewed.c.keys()}  # noqa: SIM118
    await connection.execute(_RENEW, arrays("renewed", **columns))


# -- takeover ------------------------------------------------------------------------------------

_due = (
    sa.select(sagas.c.saga_id)
    .where(
        _is_moving,
        sagas.c.lease_until < sa.func.now(),
        sa.tuple_(sagas.c.kind, sagas.c.plan_version).in_(sa.bindparam("plans", expanding=True)),
    )
    .order_by(sagas.c.lease_until)
    .limit(sa.bindparam("room"))
    .with_for_update(skip_locked=True, key_share=True)
    .cte("due")
    .prefix_with("MATERIALIZED", dialect="postgresql")
)
_time_left: Final = sa.extract("epoch", sagas.c.pivot_by - _now)
_TAKE_OVER: Final = (
    sa.update(sagas)
    .values(
        epoch=sagas.c.epoch + 1,
        owner=sa.bindparam("owner"),
        lease_until=_now + sa.bindparam("lease_s", type_=sa.Float) * _second,
        next_attempt_time=None,
    )
    .where(sagas.c.saga_id == _due.c.saga_id)
    .returning(sagas, _time_left.label("time_left_s"))
)


async def take_over(
    connection: AsyncConnection,
    *,
    owner: str,
    lease_s: float,
    room: int,
    plans: Collection[tuple[str, int]],
) -> list[Saga]:
    """At most ``room`` sagas that nobody is at work on any more, under a new epoch.

    Only those begun with one of these plans, each a kind and a version. A row that cannot be read
    is left, to be met again after its lease, and does not stop the others.
    """
    parameters = {"owner": owner, "lease_s": lease_s, "room": room, "plans": list(plans)}
    rows = await connection.execute(_TAKE_OVER, parameters)
    taken: list[Saga] = []
    for row in rows:
        try:
            taken.append(to_saga(row))
        except (ValueError, LookupError, TypeError):
            _log.exception("saga_not_readable", saga_id=row.saga_id)
    return taken


def to_saga(row: sa.Row[tuple[object, ...]]) -> Saga:
    kind = Kind(row.kind)
    left = getattr(row, "time_left_s", None)
    return Saga(
        saga_id=row.saga_id,
        kind=kind,
        plan_version=row.plan_version,
        order_id=row.order_id,
        user_id=row.user_id,
        asked=_ASKED[kind].validate_python(row.asked),
        steps=_STEPS.validate_python(row.steps),
        state=State(row.state),
        facts=_FACTS.validate_python(row.facts),
        failure=_FAILURE.validate_python(row.failure),
        epoch=row.epoch,
        attempts=row.attempts,
        time_left_s=None if left is None else float(left),
        waits=row.owner is None,
        next_attempt_time=row.next_attempt_time,
        last_error=row.last_error,
        resolution_reason=row.resolution_reason,
        create_time=row.create_time,
        update_time=row.update_time,
    )
