"""Long time limits, for tests that are about something else.

A statement that exceeds its limit is refused with DATABASE_UNAVAILABLE. On a machine that stalls
for some seconds a race would therefore fail for a reason that it does not test. The limits
themselves are tested in ``integration/common``.

How long a lane waits for a lock stays as it is: commands that find a locked row are left to
transactions that wait, and races must meet that too. ``rendezvous`` gives rivals that have to meet
the time for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import pytest

import coupon_service.store.queue
import order_service.clients
import order_service.use_cases.order
import payment_service.use_cases.joined
import payment_service.use_cases.resolver
from common.batching import batch
from common.db import bulkheads, connections, database, pool, transactions
from common.rpc import health

LONG_S: Final = 60.0
"""Longer than any stall, shorter than pytest's limit for one test."""
MARGIN_S: Final = 10.0
"""What a service keeps of a deadline to reply that the outcome is not known yet."""
SOON_S: Final = MARGIN_S + 0.5
"""As a call's deadline: the service replies after half a second, with time left for the reply."""

_LIMITS: Final[tuple[tuple[Any, str, float], ...]] = (
    (connections, "CONNECT_TIMEOUT_S", LONG_S),
    (transactions, "COMMIT_WAIT_S", LONG_S),
    (pool, "WAIT_S", LONG_S),
    (bulkheads, "WAIT_S", LONG_S),
    (database, "STATEMENT_TIMEOUT_MS", int(LONG_S * 1_000)),
    (database, "IDLE_TIMEOUT_MS", int(LONG_S * 1_000)),
    (batch, "UNREACHABLE_S", LONG_S),
    (coupon_service.store.queue, "TIMEOUT_S", 10.0),
    (health, "PROBE_TIMEOUT_S", LONG_S),
    (order_service.clients, "ATTEMPT_S", LONG_S),
    (order_service.clients, "GATEWAY_ATTEMPT_S", LONG_S),
    (order_service.use_cases.order, "JOIN_S", LONG_S),
    (order_service.use_cases.order, "MARGIN_S", MARGIN_S),
    (payment_service.use_cases.joined, "WAIT_S_MAX", LONG_S),
    (payment_service.use_cases.joined, "MARGIN_S", MARGIN_S),
    (payment_service.use_cases.resolver, "PERMISSION_S", LONG_S),
)


@contextmanager
def long_limits() -> Iterator[None]:
    """No time limit ends anything in the block."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name, limit in _LIMITS:
            patch.setattr(module, name, limit)
        yield
