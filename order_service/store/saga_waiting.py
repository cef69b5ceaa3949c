"""Sagas that wait in their rows, in SQL: which of them wait for what, and to make them due.

No replica changes a saga that waits: its next owner reads it under a new epoch.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from common.db.row_locks import CLOCK, locked
from common.db.statements import Connection
from common.db.unnest import same
from order_service.model.saga import Saga
from order_service.model.saga_command import RetrySagas
from order_service.store.journal import is_active
from order_service.store.saga import readable_sagas
from order_service.tables import sagas

ROWS_MAX: Final = 1_000
"""Sagas made due in one statement."""
_NOTHING: Final = sa.literal_column("'{}'::text[]", ARRAY(sa.Text))
MICROSECOND: Final = sa.literal_column("interval '1 microsecond'", sa.Interval)
ID_MIN: Final = "00000000-0000-0000-0000-000000000000"

# As text: in the order of the column itself, all sagas could be read, and not only the active ones.
_in_order: Final = sa.cast(sagas.c.saga_id, sa.Text).collate("C")

_waits: Final = sa.and_(is_active, sagas.c.owner.is_(None))
_WAITING: Final = (
    sa.select(sagas)
    .where(
        _waits,
        sagas.c.waits_for.overlap(sa.bindparam("waits_for", type_=ARRAY(sa.Text))),
        _in_order > sa.bindparam("after", type_=sa.Text),
    )
    .order_by(_in_order)
    .limit(sa.bindparam("size"))
)
# Steps of a form that this release cannot read stay as they are: they must not fail the statement.
_steps_due: Final = sa.literal_column(
    "CASE WHEN sagas.steps @? 'strict $[*] ? (@.type() != \"object\")'"
    " OR jsonb_typeof(sagas.steps) <> 'array' THEN sagas.steps ELSE"
    " (SELECT jsonb_agg(jsonb_set(step, '{next_attempt_time}', 'null') ORDER BY position)"
    " FROM jsonb_array_elements(sagas.steps) WITH ORDINALITY AS _ (step, position)) END",
    JSONB,
)


def _make_due(*conditions: sa.ColumnElement[bool]) -> sa.Update:
    """UPDATE of the sagas that wait and meet the conditions: every step is due now.

    Some at a time: a statement has a time limit. It counts as a retry of each.
    """
    due = locked(
        sagas,
        sa.select(sagas.c.saga_id)
        .where(_waits, sagas.c.lease_until > CLOCK, *conditions)
        .limit(ROWS_MAX),
        order_by=[_in_order],
        skip_locked=True,
        name="waiting",
    )
    return (
        sa.update(sagas)
        .values(lease_until=CLOCK, next_attempt_time=CLOCK, waits_for=_NOTHING, steps=_steps_due)
        .where(same(sagas, due, ["saga_id"]))
    )


_WAKE: Final = _make_due(
    sagas.c.saga_id == sa.any_(sa.bindparam("saga_ids", type_=ARRAY(sagas.c.saga_id.type)))
)


_state, _kind, _reason = (
    sa.bindparam(name, type_=sa.Text) for name in ("wanted_state", "wanted_kind", "last_reason")
)
_RETRY: Final = _make_due(
    sa.or_(_state.is_(None), sagas.c.state == _state),
    sa.or_(_kind.is_(None), sagas.c.kind == _kind),
    sa.or_(
        _reason.is_(None),
        _reason == sa.any_(sa.func.string_to_array(sagas.c.last_error, sa.literal_column("' '"))),
    ),
    sagas.c.create_time <= CLOCK - sa.bindparam("age_us", type_=sa.BigInteger) * MICROSECOND,
)


@dataclass(frozen=True, slots=True)
class WaitingSagas:
    """Some of the sagas that wait, and where the next begin."""

    sagas: Sequence[Saga]
    after: str
    """The id of the last one read; '' if there are no more."""


async def read_waiting(
    connection: Connection, waits_for: Collection[str], *, after: str, size: int
) -> WaitingSagas:
    """At most ``size`` sagas that wait for one of these, with ids above ``after``, ascending."""
    parameters = {"waits_for": list(waits_for), "after": after or ID_MIN, "size": size}
    rows = (await connection.execute(_WAITING, parameters)).all()
    return WaitingSagas(readable_sagas(rows), rows[-1].saga_id if len(rows) == size else "")


async def wake(connection: Connection, saga_ids: Collection[str]) -> int:
    """Make these sagas due, if they wait; returns how many."""
    return (await connection.execute(_WAKE, {"saga_ids": list(saga_ids)})).rowcount


async def retry(connection: Connection, command: RetrySagas) -> int:
    """Make all sagas due that wait for a later time and match; returns how many."""
    parameters = {
        "wanted_state": command.state,
        "wanted_kind": command.kind,
        "last_reason": command.last_reason,
        "age_us": command.age_us,
    }
    count = 0
    while True:
        made_due = (await connection.execute(_RETRY, parameters)).rowcount
        count += made_due
        if made_due < ROWS_MAX:
            return count
