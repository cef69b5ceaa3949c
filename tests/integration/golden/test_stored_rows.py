"""Rows that an earlier release wrote are read, replayed and brought to their end by this one."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from deploy.local.gateway.simulator import GatewaySimulator
from order_service.model.saga import StepRecord
from tally.balance.v1 import balance_pb2
from tally.coupon.v1 import coupon_pb2
from tally.order.v1 import order_pb2
from tally.payment.v1 import payment_pb2
from tests.integration.golden.records import (
    Caller,
    Record,
    charge,
    confirmed_payments,
    exported,
    labels,
    read,
    recorded_calls,
    response,
    words_dropped,
)
from tests.support.stack import Stack

SERVICES_OFFERED = [
    service
    for file in (balance_pb2, coupon_pb2, order_pb2, payment_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
]
LIVE = ("STATE_RUNNING", "STATE_COMPENSATING", "STATE_NEEDS_ATTENTION", "STATE_RESOLVING")
LATER = {
    "tally.coupon.v1.CouponService/QueueCoupon",
    "tally.order.v1.ProductService/AddSeats",
    "tally.order.v1.SagaService/RetrySagas",
    "tally.payment.v1.PaymentService/ResolvePayment",
    ("tally.order.v1.Saga.State", order_pb2.Saga.STATE_RESOLVING),
    ("tally.order.v1.SagaStep.State", order_pb2.SagaStep.STATE_STANDING),
    *(("tally.payment.v1.ResolvePaymentRequest.Outcome", number) for number in (1, 2, 3)),
    *(("tally.order.v1.Seat.State", number) for number in (1, 2, 3)),
    *(("tally.coupon.v1.Ticket.State", number) for number in (1, 2, 3)),
}
"""Methods and states that the releases with records do not have."""
DUE = {
    "order": "UPDATE sagas SET lease_until = now(), next_attempt_time = NULL"
    " WHERE lease_until > now()",
    "payment": "UPDATE payments SET due_time = now() WHERE due_time > now()",
}
"""The rows say that nothing is due before the year 2100."""
LABELS = {
    labels("tally_saga_steps_total", step="redeem_coupon", direction="do", outcome="done"),
    labels("tally_saga_steps_total", step="deduct_balance", direction="undo", outcome="done"),
    labels("tally_saga_steps_total", step="confirm_payment", direction="do", outcome="done"),
    labels("tally_saga_steps_total", step="refund_deduction", direction="do", outcome="done"),
    labels("tally_sagas_total", kind="PAY_ORDER", state="COMPLETED"),
    labels("tally_sagas_total", kind="PAY_ORDER", state="COMPENSATED"),
    labels("tally_sagas_total", kind="CANCEL_ORDER", state="COMPLETED"),
    labels("tally_gateway_outcomes_total", asked="find", outcome="NotFound"),
    labels("tally_gateway_outcomes_total", asked="confirm", outcome="Confirmed"),
    labels("tally_gateway_outcomes_total", asked="cancel", outcome="Cancelled"),
}
"""Of metrics that the unfinished work counts; operators have queries for these names."""


async def test_each_recorded_call_gets_the_recorded_reply(release: Path, stack: Stack) -> None:
    """Replays, refusals of reused and cancelled request_ids, and everything that can be read."""
    caller = Caller(stack)
    for record in recorded_calls(release):
        expected = {key: record[key] for key in ("response", "refusal") if key in record}
        reply = await caller.reply(record)
        if "refusal" in reply and "message" not in expected.get("refusal", {"message": ""}):
            reply = {"refusal": words_dropped(reply["refusal"])}
        assert within(expected, reply) == expected, (record["call"], record["request"])


def within(expected: Any, value: Any) -> Any:
    """The value without the fields that a later release added."""
    if isinstance(value, dict) and isinstance(expected, dict):
        return {
            name: within(expected[name], part) for name, part in value.items() if name in expected
        }
    if isinstance(value, list) and isinstance(expected, list) and len(value) == len(expected):
        return [within(old, new) for old, new in zip(expected, value, strict=True)]
    return value


async def test_unfinished_sagas_and_payments_come_to_their_end(
    release: Path, stack: Stack, gateway: GatewaySimulator
) -> None:
    for payment in confirmed_payments(release):
        await asyncio.to_thread(charge, gateway, payment)
    for service, make_due in DUE.items():
        await stack.databases.sql(service, make_due)
    caller = Caller(stack)
    for record in read(release / "unfinished.calls.jsonl"):
        reply = await caller.reply(record)
        assert ending(reply) == record["ends"], record
        if "available" in record:
            await assert_ended(stack, caller, record)
    everything = {"call": "tally.order.v1.SagaService/ListSagas", "request": {"page_size": 500}}
    listed = await caller.reply(everything)
    assert {saga["state"] for saga in listed["response"]["sagas"]}.isdisjoint(LIVE)
    assert exported() >= LABELS
    await assert_rewritten_with_every_field(release, stack)


def ending(reply: Record) -> str:
    """The state of the one thing in a response, or the reason of a refusal."""
    if "refusal" in reply:
        return str(reply["refusal"]["details"][0]["reason"])
    (thing,) = (value for value in reply["response"].values() if isinstance(value, dict))
    return str(thing["state"])


async def assert_ended(stack: Stack, caller: Caller, record: Record) -> None:
    """What the saga took is paid for or given back; no step of it is left in between."""
    request = record["request"]
    assert await stack.available(request["user_id"]) == record["available"], record
    if "payment_key" in request:
        charged = await asyncio.to_thread(stack.charged, request["payment_key"])
        assert charged == (5_000 if record["ends"] == "STATE_PAID" else 0), record
    get = {"call": "tally.order.v1.SagaService/GetSaga"}
    got = await caller.reply({**get, "request": {"order_id": request["order_id"]}})
    saga = got["response"]["saga"]
    over = {
        "STATE_COMPLETED": {"STATE_DONE", "STATE_SKIPPED"},
        "STATE_COMPENSATED": {"STATE_COMPENSATED", "STATE_PENDING"},
        "STATE_RESOLVED": {"STATE_DONE", "STATE_UNKNOWN", "STATE_PENDING"},
    }
    assert {step["state"] for step in saga["steps"]} <= over[saga["state"]], saga


async def assert_rewritten_with_every_field(release: Path, stack: Stack) -> None:
    """A renamed field would be lost without an error."""
    found = await stack.databases.sql("order", "SELECT row_to_json(sagas) FROM sagas")
    now = {row["saga_id"]: row for row in map(json.loads, found.splitlines())}
    before = [
        line["row"] for line in read(release / "order.rows.jsonl") if line["table"] == "sagas"
    ]
    # A step's field is not stored while it has its default.
    of_steps = {f".steps.{field.name}" for field in dataclasses.fields(StepRecord)}
    for row in before:
        assert set(paths(row)) <= {*paths(now[row["saga_id"]]), *of_steps}, row["user_id"]
    assert [row for row in before if row != now[row["saga_id"]]]


def paths(value: object, path: str = "") -> Iterator[str]:
    """The names of every field within a JSON value."""
    yield path
    if isinstance(value, dict):
        for name, field in value.items():
            yield from paths(field, f"{path}.{name}")
    elif isinstance(value, list):
        for item in value:
            yield from paths(item, path)


def test_records_replay_each_mutation_and_show_each_state(release: Path) -> None:
    responses = [(record, response(record)) for record in recorded_calls(release)]
    replayed = {record["call"] for record, got in responses if getattr(got, "replayed", False)}
    assert (
        replayed
        == {
            f"{service.full_name}/{method.name}"
            for service in SERVICES_OFFERED
            for method in service.methods
            if "request_id" in method.input_type.fields_by_name
        }
        - LATER
    )
    enums = {
        enum
        for service in SERVICES_OFFERED
        for message in service.file.message_types_by_name.values()
        for enum in message.enum_types
    }
    shown = {value for _, got in responses for value in enum_values(got)}
    known = {(enum.full_name, value.number) for enum in enums for value in enum.values[1:]}
    assert shown == known - LATER


def enum_values(message: Message | None) -> Iterator[tuple[str, int]]:
    """The enum values in a message, each by its enum and number."""
    for field, value in message.ListFields() if message is not None else ():
        if field.enum_type is not None:
            yield field.enum_type.full_name, value
        elif field.message_type is not None:
            for part in value if field.is_repeated else (value,):
                yield from enum_values(part)
