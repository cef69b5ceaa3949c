"""The sagas that have not ended, and those of which a compensation fails, as figures."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

from common.db.figures import StoredFigures
from order_service.model.saga import ACTIVE, SagaKind
from order_service.store.journal import is_active
from order_service.tables import sagas

_oldest_s: Final = sa.extract(
    "epoch", sa.func.clock_timestamp() - sa.func.min(sagas.c.create_time)
).label("oldest_s")

ACTIVE_SAGAS: Final = StoredFigures(
    "tally_active_sagas",
    "Sagas that have not ended, by kind and state (RUNNING pays, COMPENSATING undoes, RESOLVING "
    "undoes what a person closed, NEEDS_ATTENTION does either and is flagged)",
    ("kind", "state"),
    sa.select(
        sagas.c.kind,
        sagas.c.state,
        sa.func.count().label("rows"),
        _oldest_s,
    )
    .where(is_active)
    .group_by(sagas.c.kind, sagas.c.state),
    known=[(kind.value, state.value) for kind in SagaKind for state in ACTIVE],
)

# The steps of a cancellation undo as well: those of another saga. A step that succeeds has no
# failures any more. Fields with their defaults are not stored.
_undo_fails: Final = sa.literal_column(
    "sagas.steps @? '$[*] ? (@.failures > 0 && (@.undo_begun == true || @.undoes > \"\"))'",
    sa.Boolean,
)

FAILED_COMPENSATIONS: Final = StoredFigures(
    "tally_active_failed_compensations",
    "Sagas of which a compensation has failed and is not done yet, by kind",
    ("kind",),
    sa.select(sagas.c.kind, sa.func.count().label("rows"), _oldest_s)
    .where(is_active, _undo_fails)
    .group_by(sagas.c.kind),
    known=[(kind.value,) for kind in SagaKind],
)
