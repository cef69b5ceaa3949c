"""The values of metric labels that come from names in the code: operators have queries for them."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from common.batching.lane import Lane
from common.db.database import open_pools
from common.db.errors import RecordConflict
from common.errors import Overloaded
from common.ids import new_id
from common.locking.locks import NoLocks
from common.locking.marks import open_marks
from common.locking.redis_lock import open_locks
from common.locking.strategy import RowStrategy, Strategy
from common.metrics import REGISTRY
from common.money import Money
from deploy.local.gateway.simulator import GatewaySimulator
from deploy.local.postgres_roles import ServiceUrls
from deploy.local.valkey import ValkeyServer
from payment_service.gateway.outcomes import (
    Cancelled,
    Confirmed,
    Declined,
    Mismatch,
    NotCancellable,
    NotFound,
    NotSent,
    Rejected,
    Saturated,
    Unknown,
)
from payment_service.gateway.toss import TossGateway
from tests.support.orders import pay
from tests.support.payments import cancel, confirm, payment_replicas
from tests.support.refusals import outcome
from tests.support.stack import Stack

PAID = Money("KRW", 15_000)
LANES = "tally_lane_batch_commands_count"
NOWHERE = "redis://127.0.0.1:1/0"


def count(sample: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(sample, labels) or 0.0


def counts(sample: str, label: str) -> Counter[str]:
    """By the values of one label."""
    found: Counter[str] = Counter()
    for metric in REGISTRY.collect():
        for each in metric.samples:
            if each.name == sample:
                found[each.labels[label]] += int(each.value)
    return found


class Sqlstate(Exception):  # noqa: N818 - what the driver raises has this one attribute
    def __init__(self, sqlstate: str) -> None:
        self.sqlstate = sqlstate


FAULTS = {
    "taken": (RecordConflict(), Sqlstate("23505")),
    "held": (Sqlstate("55P03"),),
    "command": (Sqlstate("23514"),),
    "contention": (Sqlstate("40P01"),),
    "connection": (ConnectionResetError(),),
    "slow": (Sqlstate("57014"),),
    "overload": (Overloaded(pool="lanes"),),
    "unexpected": (ZeroDivisionError(),),
}
OUTCOMES: list[tuple[str, str, dict[str, Any]]] = [
    ("confirm", "Confirmed", {}),
    ("confirm", "Declined", {"confirm": Declined("c")}),
    ("confirm", "Cancelled", {"confirm": Cancelled("t", PAID)}),
    ("confirm", "NotSent", {"confirm": NotSent("w")}),
    ("confirm", "Saturated", {"confirm": Saturated()}),
    ("confirm", "Rejected", {"confirm": Rejected("c")}),
    ("confirm", "Unknown", {"confirm": Unknown("w"), "find": Declined("c")}),
    ("confirm", "Mismatch", {"confirm": Mismatch(("f",)), "find": Declined("c")}),
    ("find", "NotFound", {"cancel": NotCancellable("c"), "find": NotFound()}),
    ("cancel", "NotCancellable", {"cancel": NotCancellable("c"), "find": Cancelled("t", PAID)}),
]
"""What was asked, the label's value, and what the gateway replies."""


async def test_faults_of_a_lane(payment_database: ServiceUrls) -> None:
    errors: list[Exception] = []

    async def fail(*_: Any, **__: Any) -> list[Any]:
        raise errors[-1]

    database = open_pools(payment_database.runtime, application_name="labels", pool_size=2)
    plain = Strategy(rows=RowStrategy.INSERT, guards=(), why="")
    lane: Lane[int, None] = Lane("labels", database, fail, NoLocks(), {int: plain})
    for fault, causes in FAULTS.items():
        for error in causes:
            errors.append(error)
            before = count("tally_lane_faults_total", lane="labels", fault=fault)
            await asyncio.gather(lane.submit(1), return_exceptions=True)
            assert count("tally_lane_faults_total", lane="labels", fault=fault) > before, error
    await lane.close()
    await database.close()


async def test_outcomes_at_the_gateway(
    payment_database: ServiceUrls, gateway: GatewaySimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    replies: dict[str, Any] = {}

    def replying(operation: str) -> Any:
        async def reply(*_: Any) -> Any:
            return replies[operation]

        return reply

    for operation in ("confirm", "find", "cancel"):
        monkeypatch.setattr(TossGateway, operation, replying(operation))
    async with payment_replicas(1, payment_database, gateway, "") as (payment,):
        for asked, name, said in OUTCOMES:
            replies |= {"confirm": Confirmed("t", PAID), "cancel": Cancelled("t", PAID), **said}
            before = count("tally_gateway_outcomes_total", asked=asked, outcome=name)
            request_id = new_id()
            await outcome(payment.ConfirmPayment(confirm(new_id(), request_id)))
            await outcome(payment.CancelPayment(cancel(request_id, new_id())))
            assert count("tally_gateway_outcomes_total", asked=asked, outcome=name) > before, name


async def test_lanes_and_outcomes_of_saga_steps(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack.wire.cut_in(monkeypatch)
    stack.wire.faults = {
        "deduct_balance": ["INSUFFICIENT_FUNDS", "lost"],
        "confirm_payment": ["GATEWAY_UNAVAILABLE"],
    }
    before = counts("tally_saga_steps_total", "outcome"), counts(LANES, "lane")
    for _ in range(3):
        user_id = await stack.user(30_000)
        request = pay(await stack.order(user_id), balance=1_000, payment_key=new_id())
        request.coupon_id = await stack.coupon_of(user_id)
        await outcome(stack.pay(request))
    grown = counts("tally_saga_steps_total", "outcome") - before[0]
    assert grown.keys() == {"done", "refused", "unknown", "unreached"}
    assert (counts(LANES, "lane") - before[1]).keys() == {
        *("account", "create_campaign", "issue_coupon", "use_coupon"),
        *("product", "order", "saga", "payment"),
    }


async def test_outcomes_of_locks_and_marks(valkey_server: ValkeyServer, slow_machine: None) -> None:
    samples = ("tally_lock_keys_total", "tally_marks_total")
    before, key = [counts(sample, "outcome") for sample in samples], new_id()
    for url in (valkey_server.url, NOWHERE):
        async with open_locks(url) as locks, open_marks(url) as marks:
            for owner in ("one", "two"):
                await locks.acquire([(key,)])
                await marks.begin(f"{key}:mark", owner)
    of_locks, of_marks = (
        counts(sample, "outcome") - then for sample, then in zip(samples, before, strict=True)
    )
    assert of_locks == {"held": 1, "busy": 1, "absent": 2}
    assert of_marks == {"set": 1, "found": 1, "absent": 2}
