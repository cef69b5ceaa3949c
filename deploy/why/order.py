"""Orders and sagas: their rows, and the events that they tell of."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncConnection

from common.ids import is_id
from deploy.why.event import Event, Row, money, short
from deploy.why.selection import Records, Selection, newest_of, rows, steps_of

SERVICE: Final = "order"

_ORDERS: Final = sa.text("""
SELECT order_id::text AS order_id, user_id, request_id, currency_code, subtotal_minor,
       discount_minor, paid_by_balance_minor, paid_by_gateway_minor, coupon_id, payment_id, state,
       failure_reason, version, create_time, expire_time, update_time
  FROM orders
 WHERE order_id = ANY (CAST(:order_ids AS uuid[]))
    OR user_id = :user_id AND request_id = ANY (CAST(:request_ids AS text[]))
""")
_NEWEST: Final = sa.text("""
SELECT order_id::text AS order_id FROM orders
 WHERE user_id = :user_id ORDER BY create_time DESC, order_id DESC LIMIT :size
""")
_ITEMS: Final = sa.text("""
SELECT i.order_id::text AS order_id, i.product_id::text AS product_id, i.quantity,
       i.unit_price_minor, p.name
  FROM order_items AS i LEFT JOIN products AS p USING (product_id)
 WHERE i.order_id = ANY (CAST(:order_ids AS uuid[])) ORDER BY i.order_id, i.product_id
""")
_SAGAS: Final = sa.text("""
SELECT saga_id::text AS saga_id, kind, order_id::text AS order_id, user_id, request_id, asked,
       state, steps, facts, failure, epoch, owner, lease_until, attempts, next_attempt_time,
       last_error, resolution_reason, create_time, update_time, clock_timestamp() AS now
  FROM sagas WHERE order_id = ANY (CAST(:order_ids AS uuid[])) ORDER BY create_time, saga_id
""").columns(asked=JSONB, steps=JSONB, facts=JSONB, failure=JSONB)
_ORDERS_OF_SAGAS: Final = sa.text("""
SELECT order_id::text AS order_id FROM sagas
 WHERE kind = ANY ('{PAY_ORDER,CANCEL_ORDER}') AND user_id = :user_id
   AND request_id = ANY (CAST(:request_ids AS text[]))
""")


async def read(connection: AsyncConnection, selection: Selection, records: Records) -> None:
    """Add the selection's orders with their lines and sagas."""
    order_ids = [order_id for order_id in selection.order_ids if is_id(order_id)]
    asked = {"user_id": selection.user_id, "request_ids": list(selection.request_ids)}
    if selection.newest:
        size = selection.newest + 1
        newest = await rows(connection, _NEWEST, user_id=selection.user_id, size=size)
        kept = newest_of(records, "orders", newest, selection.newest)
        order_ids += [row["order_id"] for row in kept]
    if selection.request_ids:
        order_ids += [row["order_id"] for row in await rows(connection, _ORDERS_OF_SAGAS, **asked)]
    records.orders += await rows(connection, _ORDERS, order_ids=order_ids, **asked)
    of_these = [order["order_id"] for order in records.orders]
    records.items += await rows(connection, _ITEMS, order_ids=of_these)
    records.sagas += await rows(connection, _SAGAS, order_ids=of_these)


def events(records: Records) -> Iterator[Event]:
    """What the rows of orders and sagas tell of."""
    for order in records.orders:
        yield from _of_order(order)
    currencies = {order["order_id"]: order["currency_code"] for order in records.orders}
    for saga in records.sagas:
        yield from _of_saga(saga, currencies.get(saga["order_id"], ""))


def _of_order(order: Row) -> Iterator[Event]:
    ids = {"order_id": order["order_id"]}
    name = f"order {short(order['order_id'])}"
    subtotal = money(order["subtotal_minor"], order["currency_code"])
    created = ids | {"request_id": order["request_id"]}
    yield Event(order["create_time"], SERVICE, f"{name} created", subtotal, "→ PENDING", created)
    if order["update_time"] > order["create_time"] or order["state"] != "PENDING":
        why = f": {order['failure_reason']}" if order["failure_reason"] else ""
        paid = order["subtotal_minor"] - order["discount_minor"]
        amount = money(paid, order["currency_code"]) if order["state"] == "PAID" else ""
        last = f"{name} last changed{why}"
        yield Event(order["update_time"], SERVICE, last, amount, f"→ {order['state']}", ids)


def _of_saga(saga: Row, currency_code: str) -> Iterator[Event]:
    ids = {name: saga[name] for name in ("saga_id", "order_id", "request_id")}
    name = f"saga {short(saga['saga_id'])}"
    begun = f"{name} {saga['kind']} begun, {saga['request_id']}"
    yield Event(saga["create_time"], SERVICE, begun, "", "→ RUNNING", ids)
    for step in steps_of(saga):
        yield from _of_step(saga, step, currency_code)
    why = saga["resolution_reason"] or (saga["failure"] or {}).get("reason", "")
    last = f"{name} last written" + (f": {why}" if why else "")
    if saga["update_time"] > saga["create_time"]:
        yield Event(saga["update_time"], SERVICE, last, "", f"→ {saga['state']}", ids)


def _of_step(saga: Row, step: dict[str, Any], currency_code: str) -> Iterator[Event]:
    state = step.get("state", "PENDING")
    name = f"step {step['name']}"
    ids = {"saga_id": saga["saga_id"], "step": step["name"]}
    ids |= {"request_id": step["request_id"]} if step.get("request_id") else {}
    begun, ended = time_of(step.get("begin_time")), time_of(step.get("end_time"))
    if begun is not None:
        yield Event(begun, SERVICE, f"{name} begun", "", "", ids)
    error = f": {step['last_error']}" if step.get("last_error") else ""
    standing = money(step.get("standing_minor") or None, currency_code)
    if ended is not None:
        times = f", {step['attempts']} attempts" if step.get("attempts", 0) > 1 else ""
        yield Event(ended, SERVICE, f"{name}{error or times}", standing, f"→ {state}", ids)
    due = time_of(step.get("next_attempt_time"))
    if due is not None:
        yield Event(due, SERVICE, f"{name} is to be tried again{error}", "", state, ids)


def time_of(text: str | None) -> datetime | None:
    """A time of the journal."""
    return None if not text else datetime.fromisoformat(text)
