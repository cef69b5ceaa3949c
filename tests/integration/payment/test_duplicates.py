"""Many duplicates of one slow request, over two replicas: all of them get its outcome."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from common.batching.lane import Lane
from deploy.local.gateway.simulator import GatewaySimulator
from payment_service.model.payment_command import CancelPayment, ConfirmPayment
from payment_service.use_cases.joined import JoinedCalls
from tests.support.payments import cancel, confirm, held_at_gateway, key_of, only_payment, until
from tests.support.refusals import outcome

DUPLICATES = 200
TRANSACTIONS_MAX = 6
"""The first call's, and one of each replica when the payment is not open any more."""


@pytest.mark.parametrize("operation", ["confirm", "cancel", "decline"])
async def test_duplicates_on_every_replica_join_and_get_the_outcome(
    stubs: list[Any],
    gateway: GatewaySimulator,
    operation: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arrived = 0
    submitted: Counter[type] = Counter()
    join, submit = JoinedCalls.outcome, Lane.submit

    async def counted(*arguments: Any) -> Any:
        nonlocal arrived
        arrived += 1
        return await join(*arguments)

    async def counting(lane: Any, command: Any) -> Any:
        submitted[type(command)] += 1
        return await submit(lane, command)

    key = key_of("decline_" if operation == "decline" else "")
    method: str = "ConfirmPayment"
    request: Any = confirm(key)
    if operation == "cancel":
        await stubs[0].ConfirmPayment(request)
        method, request = "CancelPayment", cancel()
    monkeypatch.setattr(JoinedCalls, "outcome", counted)
    monkeypatch.setattr(Lane, "submit", counting)

    async def all_arrived() -> bool:
        return arrived + sum(call.done() for call in calls) >= DUPLICATES

    with held_at_gateway(key, "cancel" if operation == "cancel" else "confirm") as release:
        calls = [
            asyncio.ensure_future(outcome(getattr(stubs[number % 2], method)(request)))
            for number in range(DUPLICATES)
        ]
        await until(all_arrived)
        await only_payment(stubs[0])
        release.set()
        outcomes = await asyncio.gather(*calls)
    assert submitted[CancelPayment] + submitted[ConfirmPayment] <= TRANSACTIONS_MAX
    if operation == "decline":
        assert Counter(outcomes) == {"PAYMENT_DECLINED": DUPLICATES}
    else:
        replayed = Counter(response.replayed for response in outcomes)
        assert replayed == {False: 1, True: DUPLICATES - 1}
        assert len({response.payment.SerializeToString() for response in outcomes}) == 1
    record = gateway.charges()[key]
    assert (record["confirmCalls"], record["cancelCalls"]) == (1, int(operation == "cancel"))
