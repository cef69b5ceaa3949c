"""The journal of sagas in SQL: every write is fenced by the writer's epoch."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from common.db.row_locks import CLOCK, RowLocks, locked
from common.db.statements import Connection, Row
from common.db.unnest import arrays, arrays_of_tuples, same, unnest
from common.db.writes import Write
from order_service.model.saga import ACTIVE, Saga
from order_service.model.saga_command import RenewLease, TakeOverSagas, WriteSaga
from order_service.store.saga import SECOND, readable_sagas, to_row
from order_service.tables import sagas

OwnedKey = tuple[str, int]
"""A saga by (saga_id, epoch): the row as long as no other replica has taken it over."""

# Literals, as in the partial index: the planner would not match it with parameters.
_active: Final[list[sa.ColumnElement[str]]] = [
    sa.literal_column(f"'{state.value}'") for state in ACTIVE
]
is_active: Final = sagas.c.state.in_(_active)


def _owned(wanted: sa.TableValuedAlias) -> sa.ColumnElement[bool]:
    """The fence: a replica that lost the saga matches no row, nor does any once it has ended."""
    # A parameter: with literals, the planner might read all active sagas for each wanted one.
    states = sa.literal([state.value for state in ACTIVE], ARRAY(sa.Text))
    return sa.and_(same(sagas, wanted), sagas.c.state == sa.any_(states))


_OWNED: Final[RowLocks[OwnedKey]] = RowLocks(
    sagas, "saga_id", "epoch", matches=_owned, columns=("saga_id", "epoch")
)

_written = unnest(
    "written",
    *sagas.c["saga_id", "epoch", "snapshot", "plan_version", "state", "attempts"],
    *sagas.c["last_error", "resolution_reason"],
    # As text: arrays of arrays are matrices in PostgreSQL.
    waits_for=sa.Text,
    steps=sa.Text,
    facts=sa.Text,
    failure=sa.Text,
    lease_s=sa.Float,
    waits=sa.Boolean,
    from_epoch=sa.BigInteger,
)
_COPIED: Final = (
    *("epoch", "snapshot", "plan_version", "state", "attempts"),
    *("last_error", "resolution_reason"),
)
_until: Final = CLOCK + _written.c.lease_s * SECOND
_WRITE: Final = (
    sa.update(sagas)
    .values(
        {
            **{name: sa.cast(_written.c[name], JSONB) for name in ("steps", "facts", "failure")},
            **{name: _written.c[name] for name in _COPIED},
            "waits_for": sa.func.string_to_array(_written.c.waits_for, sa.literal_column("','")),
            "owner": sa.case((_written.c.waits, sa.null()), else_=sagas.c.owner),
            "lease_until": _until,
            "next_attempt_time": sa.case(
                (
                    sa.and_(_written.c.waits, _written.c.state.in_(_active)),
                    _until,
                )
            ),
            "update_time": CLOCK,
        }
    )
    .where(
        same(sagas, _written, ["saga_id"]),
        sagas.c.epoch == _written.c.from_epoch,
        sagas.c.snapshot < _written.c.snapshot,
    )
)

_renewed = unnest("renewed", *sagas.c["saga_id", "epoch"], lease_s=sa.Float)
# Only of a saga that a replica runs: a late heartbeat must not delay one that was given up.
_RENEW: Final = (
    sa.update(sagas)
    .values(
        lease_until=CLOCK + _renewed.c.lease_s * SECOND,
        owner=sa.case((_renewed.c.lease_s > 0, sagas.c.owner)),
    )
    .where(same(sagas, _renewed, ["saga_id", "epoch"]), sagas.c.owner.is_not(None))
)


async def lock_owned(
    connection: Connection, owned: Collection[OwnedKey], *, wait_for_locks: bool
) -> tuple[set[OwnedKey], frozenset[OwnedKey]]:
    """Lock active sagas under these epochs: those locked, and those blocked.

    The rest are lost: their epoch has changed, or they have ended.
    """
    locked_rows = await _OWNED.lock(connection, owned, wait_for_locks=wait_for_locks)
    return set(locked_rows.found), locked_rows.blocked


async def write(connection: Connection, writes: Collection[WriteSaga]) -> None:
    """Write sagas (``writing``). One that is lost, or has a newer snapshot, is left as it is."""
    for one in writing(writes):
        await connection.execute(one.statement, one.parameters)


def writing(writes: Collection[WriteSaga]) -> list[Write]:
    """The write of sagas, all of which have to have the writer's epoch and no newer snapshot.

    Lock them first.
    """
    if not writes:
        return []
    rows = [
        {
            **to_row(one.saga),
            "waits_for": ",".join(one.saga.waits_for),
            "lease_s": one.lease_s,
            "waits": one.saga.waits,
            "from_epoch": one.owned[1],
        }
        for one in writes
    ]
    return [Write(_WRITE, arrays(_written, rows), len(rows))]


async def renew(connection: Connection, renewals: Collection[RenewLease]) -> None:
    """Extend leases, or give sagas up. Lock them first."""
    if renewals:
        await connection.execute(_RENEW, arrays(_renewed, renewals))


# -- takeover ------------------------------------------------------------------------------------

# As ``SagaInput.uses_gateway``. Compared as JSON: a cast would fail for all sagas if one has no
# number there.
_gateway_minor = sagas.c.asked["gateway_minor"]
_uses_gateway: Final = sa.or_(
    sagas.c.asked["payment_key"].astext.is_not(None),
    sa.and_(
        sa.func.coalesce(sa.func.jsonb_typeof(_gateway_minor) == "number", sa.false()),
        _gateway_minor > sa.literal_column("'0'::jsonb"),
    ),
)
# A saga that a replica ran until it died is no retry, even if it had failed before.
_is_retry: Final = sa.and_(sagas.c.owner.is_(None), sagas.c.attempts > 0)
_probe: Final = sa.bindparam("probe", type_=sa.Text)
_waits_for_away: Final = sa.and_(
    sa.func.cardinality(sagas.c.waits_for) > 0,
    sagas.c.waits_for.contained_by(sa.bindparam("away", type_=ARRAY(sa.Text))),
)
_plans = unnest("plan", *sagas.c["kind", "plan_version"])
# Counted: the planner may make a join of EXISTS, and read all sagas of a kind by their requests.
_readable = (
    sa.select(sa.func.count())
    .select_from(_plans)
    .where(sagas.c.kind == _plans.c.kind, sagas.c.plan_version == _plans.c.plan_version)
    .correlate(sagas)
    .scalar_subquery()
)
_due = locked(
    sagas,
    sa.select(sagas.c.saga_id, sagas.c.owner)
    .where(
        is_active,
        sagas.c.lease_until < sa.func.now(),
        _is_retry == sa.bindparam("retries", type_=sa.Boolean),
        _waits_for_away == sa.bindparam("probes", type_=sa.Boolean),
        sa.or_(_probe.is_(None), _probe == sa.any_(sagas.c.waits_for)),
        _uses_gateway == sa.bindparam("uses_gateway", type_=sa.Boolean),
        _readable > 0,
    )
    .limit(sa.bindparam("size")),
    # What was woken, since its payment is decided, waits for nothing: it comes first.
    order_by=[sa.func.cardinality(sagas.c.waits_for), sagas.c.lease_until],
    skip_locked=True,
    name="due",
)
UNREADABLE_S_MAX: Final = 600.0
"""The longest pause of a saga that this release cannot read; the first is its lease."""
_postponed: Final = (
    CLOCK
    + sa.func.least(
        UNREADABLE_S_MAX,
        sa.bindparam("lease_s", type_=sa.Float)
        * sa.func.power(2, sa.func.least(sagas.c.attempts, 16)),
    )
    * SECOND
)
_TAKE_OVER: Final = (
    sa.update(sagas)
    .values(
        epoch=sagas.c.epoch + 1,
        owner=sa.bindparam("owner"),
        lease_until=CLOCK + sa.bindparam("lease_s", type_=sa.Float) * SECOND,
        next_attempt_time=None,
    )
    .where(same(sagas, _due, ["saga_id"]))
    .returning(
        sagas,
        sa.extract("epoch", sagas.c.pivot_by - CLOCK).label("time_left_s"),
        CLOCK.label("now"),
        _due.c.owner.is_not(None).label("had_owner"),
    )
)


# Nobody can run it: it waits as a saga that failed does, each time for twice as long. A release
# that can read it takes it over then.
_POSTPONE: Final = (
    sa.update(sagas)
    .values(
        owner=None,
        attempts=sagas.c.attempts + 1,
        lease_until=_postponed,
        next_attempt_time=_postponed,
    )
    .where(sagas.c.saga_id == sa.any_(sa.bindparam("saga_ids", type_=ARRAY(sagas.c.saga_id.type))))
)


@dataclass(frozen=True, slots=True)
class TakenOver:
    """Sagas that a replica took over, and the database's clock at that time."""

    sagas: Sequence[Saga]
    now: datetime | None
    """None if there are no sagas."""
    expired: int = 0
    """Those of them that a replica ran until its lease ended; the others waited in their rows."""
    full: bool = False
    """Whether there may be more: as many rows were found as there was capacity for."""


async def take_over(connection: Connection, command: TakeOverSagas) -> TakenOver:
    """Take sagas over under a new epoch.

    Of those that wait for a participant that is away, one is taken over as a probe. A row that
    cannot be read is postponed, each time for longer, and does not stop the others.
    """
    parameters: dict[str, object] = {
        "owner": command.owner,
        "lease_s": command.lease_s,
        "uses_gateway": command.uses_gateway,
        **arrays_of_tuples(_plans, command.plans),
    }
    rows: list[Row] = []
    retries = command.retries
    # Sagas of dead replicas, then retries, then one probe for each service that is away.
    for retry, away, probe, most in (
        (False, [], None, command.capacity),
        (True, list(command.away), None, command.capacity),
        *((True, list(command.away), name, 1) for name in command.away),
    ):
        size = min(most, command.capacity - len(rows), retries if retry else most)
        if size > 0:
            pick = {"retries": retry, "away": away, "probes": probe is not None, "probe": probe}
            due = await connection.execute(_TAKE_OVER, {**parameters, **pick, "size": size})
            rows.extend(due)
            retries -= len(due) if retry else 0
    found = readable_sagas(rows)
    if unreadable := {row.saga_id for row in rows} - {saga.saga_id for saga in found}:
        postponed = {"saga_ids": sorted(unreadable), "lease_s": command.lease_s}
        await connection.execute(_POSTPONE, postponed)
    full = len(rows) == command.capacity
    had_owner = {row.saga_id for row in rows if row.had_owner}
    return TakenOver(
        found,
        max((row.now for row in rows), default=None),
        expired=sum(saga.saga_id in had_owner for saga in found),
        full=full,
    )
