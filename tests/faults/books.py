"""What must be true of the books after healing, beside the audit."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import asyncpg

from deploy.local.plan import GATEWAY_RECORD
from tests.faults.load import Replies
from tests.faults.stack import FaultyStack

States = dict[str, tuple[str, int]]
"""The state of each order, and what it says the gateway has charged for it."""

FINAL_LIMIT_S: Final = 30.0
_POLL_S: Final = 0.2

_OPEN_ORDERS: Final = """
SELECT o.order_id || ': ' || o.state || ', ' || coalesce(
         (SELECT string_agg(s.kind || ' ' || s.state || ' ' || s.last_error, '; ')
            FROM sagas s WHERE s.order_id = o.order_id), 'no saga') AS line
  FROM orders o
 WHERE o.state NOT IN ('PAID', 'CANCELLED', 'EXPIRED')
"""
_OPEN_SAGAS: Final = """
SELECT 'saga ' || saga_id || ': ' || kind || ' ' || state || ' ' || last_error
  FROM sagas
 WHERE state NOT IN ('COMPLETED', 'COMPENSATED', 'RESOLVED')
"""
_ORDERS: Final = "SELECT order_id::text, state, paid_by_gateway_minor FROM orders"
_REFUNDED_OUTSIDE: Final = """
SELECT payment_key FROM payments WHERE refunded_outside_minor = amount_minor
"""
_CHARGES: Final = """
SELECT payment_key, order_id, total_amount, balance_amount FROM payments
 WHERE approved_at IS NOT NULL
"""


async def unfinished(stack: FaultyStack, *, limit_s: float = FINAL_LIMIT_S) -> list[str]:
    """Orders and sagas that have not ended within the time."""
    statement = f"{_OPEN_ORDERS} UNION ALL {_OPEN_SAGAS}"
    return await _until_none(stack, statement, limit_s)


async def unfinished_sagas(stack: FaultyStack, *, limit_s: float) -> list[str]:
    """Sagas that have not ended within the time."""
    return await _until_none(stack, _OPEN_SAGAS, limit_s)


async def _until_none(stack: FaultyStack, statement: str, limit_s: float) -> list[str]:
    until_s = time.monotonic() + limit_s
    connection = await asyncpg.connect(stack.backends.databases["order"].audit)
    try:
        while True:
            lines = [str(row[0]) for row in await connection.fetch(statement)]
            if not lines or time.monotonic() > until_s:
                return lines
            await asyncio.sleep(_POLL_S)
    finally:
        await connection.close()


async def wrong(
    stack: FaultyStack, replies: Iterable[Replies], of_others: States | None = None
) -> list[str]:
    """Replies that the order contradicts, and charges that belong to no order.

    ``of_others``: orders that another system has paid for by the payment service.
    """
    rows = await read(stack, "order", _ORDERS)
    states = {row["order_id"]: (row["state"], row["paid_by_gateway_minor"]) for row in rows}
    outside = {row["payment_key"] for row in await read(stack, "payment", _REFUNDED_OUTSIDE)}
    return [
        *broken_promises(states, replies),
        *wrong_charges(stack.plan.data_dir / GATEWAY_RECORD, states | (of_others or {}), outside),
    ]


async def read(stack: FaultyStack, service: str, statement: str) -> list[asyncpg.Record]:
    """Rows of a service's database."""
    connection = await asyncpg.connect(stack.backends.databases[service].audit)
    try:
        rows: list[asyncpg.Record] = await connection.fetch(statement)
    finally:
        await connection.close()
    return rows


def broken_promises(states: States, replies: Iterable[Replies]) -> Iterable[str]:
    """Orders that contradict the replies of their customers."""
    for one in replies:
        state, _ = states.get(one.order_id, ("missing", 0))
        if one.cancelled in {"CANCELLED", "CANCELLING"}:
            expected = state == "CANCELLED"
        elif one.paid == "PAID":
            expected = state == "PAID" or bool(one.kind.cancels and not one.cancelled)
        elif one.paid:
            expected = state != "PAID"
        else:
            expected = True
        if not expected:
            got = f"{one.paid} {one.cancelled}"
            yield f"{one.order_id} ({one.kind.name}): replied {got}, is {state}"


def wrong_charges(gateway_record: Path, states: States, outside: set[str]) -> Iterable[str]:
    """Charges that are kept and belong to no paid order, and paid orders without their charge.

    ``outside``: the keys of payments that a person has refunded by other means.
    """
    charged: dict[str, int] = {}
    record = sqlite3.connect(f"file:{gateway_record}?mode=ro", uri=True)
    try:
        for key, order_id, total, left in record.execute(_CHARGES):
            if key in outside:
                left = 0  # noqa: PLW2901 - given back by a person
            if left:
                charged[order_id] = charged.get(order_id, 0) + total
            state, amount = states.get(order_id, ("missing", 0))
            if left and (state != "PAID" or amount != left):
                yield f"charge {key}: {left} kept for an order that is {state} with {amount}"
    finally:
        record.close()
    for order_id, (state, amount) in states.items():
        if state == "PAID" and amount != charged.get(order_id, 0):
            yield f"order {order_id}: paid {amount}, charged {charged.get(order_id, 0)}"
