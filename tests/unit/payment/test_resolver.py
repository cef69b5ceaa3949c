"""The resolver's slots, its metric, and what a stopping replica waits for."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any, cast, get_args

import pytest

from common.money import Money
from payment_service.gateway.outcomes import Charge, FindOutcome, GatewayOutcome, Unknown
from payment_service.model.confirmation import Confirmation
from payment_service.model.outcome import record
from payment_service.model.payment import BEGINNING
from payment_service.model.payment_command import BeginConfirm, ConfirmPayment, RecordOutcome
from payment_service.use_cases.gateway_calls import OUTCOME_LABELS
from payment_service.use_cases.payment import Payments
from payment_service.use_cases.resolver import Resolver
from tests.support.time_limits import LONG_S

LEASE = timedelta(seconds=15)
NONE: Any = None


class SilentGateway:
    """A gateway whose outcomes are unknown; a look-up lasts until ``release``."""

    name = "toss"

    def __init__(self) -> None:
        self.confirming = self.finding = 0
        self.release = asyncio.Event()

    async def confirm(self, charge: Charge) -> Unknown:
        self.confirming += 1
        await asyncio.sleep(0)
        return Unknown("silent")

    async def find(self, charge: Charge) -> FindOutcome:
        self.finding += 1
        await self.release.wait()
        return Unknown("silent")


class FakeLane:
    """Records outcomes as the decider does, each time after others had their turn."""

    def __init__(self) -> None:
        self.payments: dict[str, Confirmation] = {}

    def claim(self, number: int) -> Confirmation:
        command = ConfirmPayment(
            "order-1", "ann", Money("KRW", 1), f"key-{number}", f"c{number}", f"holder-{number}"
        )
        made = Confirmation.claim(command, f"p{number}", "toss", BEGINNING, LEASE)
        self.payments[f"p{number}"] = made
        return replace(made)

    async def submit(self, command: BeginConfirm | RecordOutcome) -> Confirmation:
        await asyncio.sleep(0)
        payment = self.payments[command.payment_id]
        if isinstance(command, BeginConfirm):
            assert payment.begin_confirm(command.holder, BEGINNING)
        else:
            record(payment, command, BEGINNING, LEASE, confirm_window=LEASE)
        return replace(payment)


async def test_first_calls_that_end_together_keep_to_the_slots() -> None:
    gateway, lane = SilentGateway(), FakeLane()
    resolver = Resolver(NONE, cast(Any, lane), cast(Any, gateway), lease=LEASE, concurrency=3)
    claims = [lane.claim(number) for number in range(10)]
    ended = await asyncio.gather(*(resolver.charge(claim, 0.0) for claim in claims))
    kept = [confirmation for _, confirmation in ended if confirmation and confirmation.holder]
    assert len(kept) == 3
    # The others are due for the sweep, which finds no free slot.
    assert sum(payment.holder is None for payment in lane.payments.values()) == 7
    assert await resolver.sweep() == 0

    async with asyncio.timeout(LONG_S):
        while gateway.finding < 3:  # noqa: ASYNC110 - the retries begin after a pause
            await asyncio.sleep(0.01)
    assert gateway.finding == 3
    gateway.release.set()
    await resolver.close(10)


@pytest.mark.parametrize(
    ("claimed_for_s", "commits_s", "sent"),
    [
        (0.4, [], True),
        (0.6, [0.4], True),
        (0.6, [0.6, 3.0, 0.4], True),
        (0.6, [0.6, 0.6, 0.6], False),
    ],
)
async def test_a_confirm_is_sent_only_under_a_fresh_permission(
    claimed_for_s: float,
    commits_s: list[float],
    sent: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """``commits_s``: how long each permission takes, or the replica is paused after it."""
    clock = [100.0 + claimed_for_s]
    monkeypatch.setattr("payment_service.use_cases.resolver._now", lambda: clock[0])
    gateway, lane = SilentGateway(), FakeLane()
    submit, left_s = lane.submit, list(commits_s)

    async def slow(command: BeginConfirm | RecordOutcome) -> Confirmation:
        if isinstance(command, BeginConfirm):
            clock[0] += left_s.pop(0)
        return await submit(command)

    monkeypatch.setattr(lane, "submit", slow)
    resolver = Resolver(NONE, cast(Any, lane), cast(Any, gateway), lease=LEASE, concurrency=0)
    await resolver.charge(lane.claim(1), 100.0)
    assert (gateway.confirming, left_s) == (int(sent), [])
    # What was not sent frees the key.
    assert lane.payments["p1"].released is not sent


def test_every_outcome_has_its_metric_label() -> None:
    assert set(OUTCOME_LABELS) == set(get_args(GatewayOutcome))


@pytest.mark.parametrize(
    ("grace_s", "call_runs", "least_s", "most_s"),
    [
        (0.2, True, 0, 0.1),
        # Nothing is waited for: only the time of a few statements is missing.
        (600, False, 300, 600),
    ],
)
async def test_the_resolver_gets_what_the_calls_leave_of_the_grace(
    grace_s: float,
    call_runs: bool,
    least_s: float,
    most_s: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gateway: Any = SilentGateway()
    payments = Payments(
        NONE, gateway, NONE, NONE, lease_s=15, confirm_window_s=900, resolve_concurrency=1
    )
    limits: list[float] = []

    async def close(limit_s: float) -> None:
        limits.append(limit_s)

    monkeypatch.setattr(payments.resolver, "close", close)
    calls = [payments._calls.start(asyncio.Event().wait())] if call_runs else []
    await payments.close(grace_s)
    assert all(call.cancelled() for call in calls)
    assert least_s <= limits[0] <= most_s
