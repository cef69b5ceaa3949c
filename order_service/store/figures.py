"""The sagas that have not ended, as figures."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

from common.db.figures import StoredFigures
from order_service.model.saga import ACTIVE, SagaKind
from order_service.store.journal import is_active
from order_service.tables import sagas

ACTIVE_SAGAS: Final = StoredFigures(
    "tally_active_sagas",
    "Sagas that have not ended, by kind and state (RUNNING pays, COMPENSATING undoes, RESOLVING "
    "undoes what a person closed, NEEDS_ATTENTION does either and is flagged)",
    ("kind", "state"),
    sa.select(
        sagas.c.kind,
        sagas.c.state,
        sa.func.count().label("rows"),
        sa.extract("epoch", sa.func.clock_timestamp() - sa.func.min(sagas.c.create_time)).label(
            "oldest_s"
        ),
    )
    .where(is_active)
    .group_by(sagas.c.kind, sagas.c.state),
    known=[(kind.value, state.value) for kind in SagaKind for state in ACTIVE],
)
