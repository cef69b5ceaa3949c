"""The payments that still have to be settled, as figures."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

from common.db.figures import StoredFigure, StoredFigures
from payment_service.model.payment import CANCELLABLE, PaymentState
from payment_service.tables import payments

REFUND_REFUSED: Final = "REFUND_REFUSED"
"""CONFIRMED, and the gateway has refused the refund permanently: a person has to settle it."""

# As in the index payments_refund_refused. The state is a literal: a parameter's index is not known.
_refund_refused: Final = sa.and_(
    payments.c.state == sa.literal_column(f"'{PaymentState.CONFIRMED}'"),
    payments.c.refund_refusal_code.is_not(None),
)
_state: Final = sa.case(
    (_refund_refused, sa.literal_column(f"'{REFUND_REFUSED}'")), else_=payments.c.state
).label("state")

OPEN_PAYMENTS: Final = StoredFigures(
    sa.select(
        _state,
        sa.func.count().label("rows"),
        sa.extract(
            "epoch",
            sa.func.clock_timestamp()
            - sa.func.min(sa.func.coalesce(payments.c.cancel_request_time, payments.c.create_time)),
        ).label("oldest_s"),
    )
    .where(sa.or_(payments.c.due_time.is_not(None), _refund_refused))
    .group_by(_state),
    StoredFigure(
        "tally_open_payments",
        "Payments that are still to be settled with the gateway, by state (PENDING is being "
        "confirmed, UNKNOWN is looked up, CONFIRMED is given back, REFUND_REFUSED waits for a "
        "person, since the gateway will not give it back)",
        ("state",),
        known=[(state,) for state in (*sorted(CANCELLABLE), REFUND_REFUSED)],
    ),
)
