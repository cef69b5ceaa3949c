"""All planted bugs, by part of the project."""

from __future__ import annotations

from typing import Final

from tests.mutants.audit import AUDIT
from tests.mutants.balance import BALANCE
from tests.mutants.bulk import BULK
from tests.mutants.common import COMMON
from tests.mutants.coupon import COUPON
from tests.mutants.identity import IDENTITY
from tests.mutants.lanes import LANES
from tests.mutants.locks import LOCKS
from tests.mutants.order import ORDER
from tests.mutants.payment import PAYMENT
from tests.mutants.queue import QUEUE
from tests.mutants.rate_limits import RATE_LIMITS
from tests.mutants.sagas import SAGAS
from tests.mutants.seats import SEATS
from tests.mutants.security import SECURITY
from tests.mutants.shares import SHARES

MUTANTS: Final = (
    *COMMON,
    *BULK,
    *BALANCE,
    *COUPON,
    *SHARES,
    *QUEUE,
    *ORDER,
    *SEATS,
    *SAGAS,
    *PAYMENT,
    *SECURITY,
    *AUDIT,
    *LOCKS,
    *LANES,
    *IDENTITY,
    *RATE_LIMITS,
)
