"""How things stand now, and what to do next where something is stuck."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any, Final

from deploy.why.event import Row, at, clock, money
from deploy.why.order import time_of
from deploy.why.payment import refunded_minor
from deploy.why.selection import Records, steps_of

GUIDE: Final = "docs/guides/attention.md"
ACTIVE: Final = frozenset({"RUNNING", "COMPENSATING", "NEEDS_ATTENTION", "RESOLVING"})
FINAL: Final = frozenset({"PAID", "CANCELLED", "EXPIRED"})
_AWAY: Final = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "DATABASE_UNAVAILABLE"})
_GATEWAY: Final = frozenset(
    {"PAYMENT_OUTCOME_UNKNOWN", "GATEWAY_UNAVAILABLE", "PAYMENT_IN_PROGRESS"}
)


def now_lines(records: Records, *, open_only: bool) -> Iterator[tuple[str, str]]:
    """How things stand, as (label, text); ``open_only``: one by one only what is not settled."""
    if open_only:
        states = Counter(order["state"] for order in records.orders)
        if states:
            counts = (f"{count:,} {state}" for state, count in sorted(states.items()))
            yield "orders", ", ".join(counts)
    else:
        for order in records.orders:
            yield from _order(order, records)
    for saga in _active(records.sagas) if open_only else records.sagas:
        yield from _saga(saga)
    for payment in records.payments:
        unsettled = payment["state"] in {"PENDING", "UNKNOWN"} or payment["due_time"] is not None
        if unsettled or not open_only:
            yield from _payment(payment)
    for coupon in () if open_only else records.coupons:
        used = f"used by order {coupon['order_id']}" if coupon["order_id"] else "not used"
        yield "coupon", f"{coupon['coupon_id']}: {used}, expires {at(coupon['expire_time'])}"
    for account in records.accounts:
        balance = money(account["available_minor"], account["currency_code"])
        yield "account", f"{account['user_id']}: {balance}, version {account['version']:,}"


def next_lines(records: Records, *, whole: bool) -> Iterator[str]:
    """What to do, or what happens by itself. ``whole``: all that orders hold was read."""
    for saga in _active(records.sagas):
        yield from _next_of_saga(saga, records)
    for payment in records.payments:
        if payment["refund_refusal_code"] and payment["state"] == "CONFIRMED":
            yield (
                f"The gateway refuses to refund payment {payment['payment_id']}: give the money"
                " back by other means, then ResolvePayment with OUTCOME_REFUNDED_OUTSIDE"
                f" ({GUIDE})."
            )
        elif payment["state"] == "UNKNOWN" and _saga_of(payment) not in _ids(
            _active(records.sagas)
        ):
            yield (
                f"Payment {payment['payment_id']} waits for the gateway and is looked up by itself;"
                f" else compare with the gateway's record, and ResolvePayment ({GUIDE})."
            )
    active = {saga["order_id"] for saga in _active(records.sagas)}
    for order in records.orders if whole else ():
        held = [text for _, text in _held(order, records)]
        if order["order_id"] in active or order["state"] == "PAID" or not held:
            continue
        if not _stands(order, records):
            yield (
                f"Order {order['order_id']} is {order['state']} and holds {', '.join(held)}, and no"
                " saga gives that back: run `make audit`."
            )


def _order(order: Row, records: Records) -> Iterator[tuple[str, str]]:
    currency = order["currency_code"]
    total = money(order["subtotal_minor"] - order["discount_minor"], currency)
    why = f" ({order['failure_reason']})" if order["failure_reason"] else ""
    until = f", until {at(order['expire_time'])}" if order["state"] == "PENDING" else ""
    settled = "; final" if order["state"] in FINAL else ""
    yield "order", f"{order['order_id']} of user {order['user_id']}"
    yield "", f"{order['state']}{why}, {total}{until}{settled}"
    for item in records.items:
        if item["order_id"] != order["order_id"]:
            continue
        price = money(item["unit_price_minor"], currency)
        name = f" {item['name']}" if item["name"] else ""
        yield "item", f"{item['quantity']:,} × {price}{name}, product {item['product_id']}"
    held = list(_held(order, records))
    paid = "paid" if order["state"] == "PAID" else "held"
    yield paid, ", ".join(text for _, text in held) or "nothing"


def _held(order: Row, records: Records) -> Iterator[tuple[str, str]]:
    """What the services hold for the order now: (service, text)."""
    order_id, currency = order["order_id"], order["currency_code"]
    # Direct calls may name the order too, and are none of it.
    sagas = _ids(saga for saga in records.sagas if saga["order_id"] == order_id)
    entries = (row for row in records.entries if _saga_of(row) in sagas)
    if taken := -sum(row["amount_minor"] for row in entries):
        yield "balance", f"{money(taken, currency)} of the balance"
    for payment in records.payments:
        if _saga_of(payment) not in sagas:
            continue
        left = payment["amount_minor"] - refunded_minor(payment)
        amount = money(left, payment["currency_code"])
        if payment["state"] == "CONFIRMED" and left:
            yield "payment", f"{amount} by the gateway"
        elif payment["state"] in {"PENDING", "UNKNOWN"}:
            yield "payment", f"perhaps {amount} by the gateway"
    for each in records.redemptions:
        if _saga_of(each) in sagas and each["restore_time"] is None:
            discount = money(each["discount_minor"], each["currency_code"])
            yield "coupon", f"a coupon of {discount}"


def _saga_of(row: Row) -> str:
    """The saga whose step wrote the row."""
    return str(row["request_id"]).partition(":")[0]


def _stands(order: Row, records: Records) -> bool:
    """Whether a person let effects of the order stand."""
    return any(
        step.get("state") == "STANDING"
        for saga in records.sagas
        if saga["order_id"] == order["order_id"]
        for step in steps_of(saga)
    )


def _ids(sagas: Iterable[Row]) -> set[str]:
    return {saga["saga_id"] for saga in sagas}


def _active(sagas: Iterable[Row]) -> list[Row]:
    return [saga for saga in sagas if saga["state"] in ACTIVE]


def _saga(saga: Row) -> Iterator[tuple[str, str]]:
    why = saga["resolution_reason"] or (saga["failure"] or {}).get("reason", "")
    reason = f" ({why})" if why else ""
    yield "saga", f"{saga['saga_id']} {saga['kind']} {saga['state']}{reason}"
    if saga["state"] not in ACTIVE:
        return
    since = f"since {at(saga['create_time'])}"
    if saga["owner"] is not None:
        yield "", f"{since}; runs at {saga['owner']}, whose lease ends {clock(saga['lease_until'])}"
    else:
        yield "", f"{since}; waits, {saga['attempts']:,} attempts; next {_next(saga)}"
    for step in steps_of(saga):
        if step.get("last_error"):
            yield "", f"{step['name']} {step.get('state', 'PENDING')}: {step['last_error']}"


def _next(saga: Row) -> str:
    due: datetime | None = saga["next_attempt_time"]
    return clock(due) if due is not None and due > saga["now"] else "at once"


def _payment(payment: Row) -> Iterator[tuple[str, str]]:
    amount = money(payment["amount_minor"], payment["currency_code"])
    due = payment["due_time"]
    again = "" if due is None else f", looked at again at {clock(due)}"
    yield "payment", f"{payment['payment_id']}: {payment['state']}, {amount}{again}"


def _next_of_saga(saga: Row, records: Records) -> Iterator[str]:
    failing = [step for step in steps_of(saga) if _fails(step)]
    for step in failing:
        yield f"{step['name']}: {_advice(step, records)}"
    if failing:
        yield (
            f"Then RetrySaga with saga_id {saga['saga_id']} makes it due at once; to close it,"
            f" ResolveSaga ({GUIDE})."
        )
    elif "INTERNAL" in saga["last_error"]:
        yield (
            f"Saga {saga['saga_id']} meets a defect of Tally: the order service's log has it under"
            " saga_failed."
        )
    else:
        yield f"Saga {saga['saga_id']} goes on by itself."


def _fails(step: dict[str, Any]) -> bool:
    if not step.get("last_error"):
        return False
    over = step.get("state") in {"COMPENSATED", "SKIPPED", "STANDING", "DONE"}
    return not over and (
        time_of(step.get("next_attempt_time")) is not None or step.get("failures", 0) > 0
    )


def _advice(step: dict[str, Any], records: Records) -> str:
    words = set(str(step["last_error"]).split())
    service = step.get("participant") or "the service"
    if "REFUND_REFUSED" in words:
        return "the gateway will not refund; see below"
    if words & _GATEWAY:
        unknown = [row["payment_id"] for row in records.payments if row["state"] == "UNKNOWN"]
        which = f" payment {unknown[0]}" if unknown else " the payment"
        return (
            "waits for the gateway and goes on by itself when it is back; else compare with the"
            f" gateway's record and settle{which} by ResolvePayment ({GUIDE})"
        )
    if words & _AWAY:
        return f"waits for {service}: bring it back, and the saga goes on by itself"
    if words & {"OVERLOADED", "REQUEST_IN_PROGRESS"}:
        return f"{service} is busy: nothing, unless it stays so"
    if "INTERNAL" in words:
        return (
            f"a defect of Tally, in {service} (unexpected error in its log) or in the order service"
            f" (saga_call_failed); the saga goes on by itself when it is mended ({GUIDE})"
        )
    return f"{service} refused: {step['last_error']} ({GUIDE})"
