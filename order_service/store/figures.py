"""The sagas that have not ended, and those of which a compensation fails, as figures."""

from __future__ import annotations

from datetime import datetime
from typing import Final

import sqlalchemy as sa

from common.db.figures import StoredFigure, StoredFigures
from order_service.model.saga import ACTIVE, SagaKind
from order_service.store.journal import is_active
from order_service.tables import sagas

# The steps of a cancellation undo as well: those of another saga. A step that succeeds has no
# failures any more. Fields with their defaults are not stored.
_FAILING: Final = '$[*] ? (@.failures > 0 && (@.undo_begun == true || @.undoes > ""))'
_undo_fails: Final = sa.literal_column(f"sagas.steps @? '{_FAILING}'", sa.Boolean)
# A text that is no time (a row that a person changed) must not fail the read of all sagas. A step
# whose failures an earlier release counted has none: then it is the saga's own time.
_first_failure: Final = sa.literal_column(
    "coalesce((SELECT min(CASE WHEN pg_input_is_valid(failing, 'timestamptz')"  # noqa: S608 - constants
    " THEN failing::timestamptz END)"
    " FROM jsonb_array_elements_text(jsonb_path_query_array(sagas.steps,"
    f" '{_FAILING}.first_failure_time')) AS failing), sagas.create_time)",
    sa.DateTime(timezone=True),
)


def _age_s(oldest: sa.ColumnElement[datetime]) -> sa.Extract:
    return sa.extract("epoch", sa.func.clock_timestamp() - oldest)


ACTIVE_SAGAS: Final = StoredFigures(
    sa.select(
        sagas.c.kind,
        sagas.c.state,
        sa.func.count().label("rows"),
        _age_s(sa.func.min(sagas.c.create_time)).label("oldest_s"),
        sa.func.count().filter(_undo_fails).label("failing"),
        _age_s(sa.func.min(_first_failure).filter(_undo_fails)).label("failing_s"),
    )
    .where(is_active)
    .group_by(sagas.c.kind, sagas.c.state),
    StoredFigure(
        "tally_active_sagas",
        "Sagas that have not ended, by kind and state (RUNNING pays, COMPENSATING undoes, "
        "RESOLVING undoes what a person closed, NEEDS_ATTENTION does either and is flagged)",
        ("kind", "state"),
        known=[(kind.value, state.value) for kind in SagaKind for state in ACTIVE],
    ),
    StoredFigure(
        "tally_active_failed_compensations",
        "Sagas of which a compensation has failed and is not done yet, by kind",
        ("kind",),
        known=[(kind.value,) for kind in SagaKind],
        age="the time since the first of its failures in a row, of the oldest",
        rows="failing",
        oldest_s="failing_s",
    ),
)
