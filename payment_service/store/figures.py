"""The payments that still have to be settled, as figures."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

from common.db.figures import StoredFigures
from payment_service.model.payment import CANCELLABLE
from payment_service.tables import payments

OPEN_PAYMENTS: Final = StoredFigures(
    "tally_open_payments",
    "Payments that the service still has to settle with the gateway, by state (PENDING is being "
    "confirmed, UNKNOWN is looked up, CONFIRMED is given back)",
    ("state",),
    sa.select(
        payments.c.state,
        sa.func.count().label("rows"),
        sa.extract(
            "epoch",
            sa.func.clock_timestamp()
            - sa.func.min(sa.func.coalesce(payments.c.cancel_request_time, payments.c.create_time)),
        ).label("oldest_s"),
    )
    .where(payments.c.due_time.is_not(None))
    .group_by(payments.c.state),
    known=[(state.value,) for state in sorted(CANCELLABLE)],
)
