"""The memory of an audit does not grow with the books."""

from __future__ import annotations

import tracemalloc
from datetime import UTC, datetime
from typing import Final

import pytest

from deploy.audit import audit_pass, checks
from deploy.audit.audit import Limits, audit
from deploy.audit.touched import Since
from deploy.local.plan import SERVICES
from tests.integration.audit.conftest import Books

ROWS: Final = 2_000
"""More than a stream reads ahead."""
TIMES: Final = 3
KEPT: Final = 100
"""Differences of one check that are kept: so few that they do not hide what else is in memory."""
SLACK: Final = 1.25

pytestmark = pytest.mark.timeout(300)  # every allocation is traced

# Rows that differ in every way are compared like those that agree, and cost more: a difference.
# Each is of a user of its own.
FILL: Final = {
    "balance": """
INSERT INTO ledger_entries
SELECT 'u' || {first} + n, 'KRW', {first} + n, gen_random_uuid(), 'DEDUCT', -1, 1,
       gen_random_uuid() || ':deduct_balance', NULL, NULL, now()
  FROM generate_series(1, {rows}) AS n;
""",
    "order": """
INSERT INTO orders (order_id, user_id, request_id, currency_code, subtotal_minor, discount_minor,
                    paid_by_balance_minor, paid_by_gateway_minor, state, failure_reason, version,
                    create_time, expire_time, update_time)
SELECT gen_random_uuid(), 'u' || {first} + n, 'r' || {first} + n, 'KRW', 0, 0, 0, 0, 'PAID', '', 1,
       now(), now(), now()
  FROM generate_series(1, {rows}) AS n;
""",
    "payment": """
INSERT INTO payments (payment_id, payment_key, user_id, request_id, order_id, currency_code,
                      amount_minor, gateway, state, gateway_transaction_id, tries, version,
                      create_time, update_time, refunded_minor, refunded_outside_minor,
                      confirm_time)
SELECT gen_random_uuid(), 'k' || {first} + n, 'u' || {first} + n, 'r' || {first} + n, 'o', 'KRW', 5,
       'toss', 'CONFIRMED', 't' || {first} + n, 0, 1, now(), now(), 0, 0, now()
  FROM generate_series(1, {rows}) AS n;
""",
}


async def peak_bytes(books: Books, since: Since | None) -> int:
    tracemalloc.start()
    try:
        report = await audit(books.sources, Limits(settle_s=0.0), since)
        assert report.breaches > 3 * ROWS
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("scope", ["full", "recent"])
async def test_memory_does_not_grow_with_the_books(
    books: Books, scope: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (audit_pass, checks):
        monkeypatch.setattr(module, "KEPT_MAX", KEPT)
    a_long_time_ago = dict.fromkeys(SERVICES, datetime(2000, 1, 1, tzinfo=UTC))
    since = a_long_time_ago if scope == "recent" else None
    for where, script in FILL.items():
        books.change(where, script.format(first=1_000, rows=ROWS))
    # What is allocated once, such as compiled statements, is no part of either figure.
    await audit(books.sources, Limits(settle_s=0.0), since)
    small = await peak_bytes(books, since)
    for where, script in FILL.items():
        books.change(where, script.format(first=1_000 + ROWS, rows=ROWS * (TIMES - 1)))
    assert await peak_bytes(books, since) < SLACK * small
