"""Duplicates of a payment over four replicas are below the limit that stands by default."""

from __future__ import annotations

import asyncio

from deploy.local.gateway.simulator import GatewaySimulator
from tests.support.payments import Serve, check_charged_once, confirm, key_of
from tests.support.refusals import Results, outcome

DUPLICATES = 5


async def test_five_duplicates_at_once_are_refused_by_their_key_and_by_no_limit(
    serve: Serve, gateway: GatewaySimulator
) -> None:
    async with serve(4, gateway, rate_limits=True, rate_limit_replicas=4) as stubs:
        for _ in range(3):
            key = key_of()
            # Each time another user: without Redis a replica has a quarter of the limit, which
            # the calls of three payments would use up.
            requests = [confirm(key, f"{key}-{n}", user_id=key) for n in range(DUPLICATES)]
            calls = (outcome(stubs[n % 4].ConfirmPayment(each)) for n, each in enumerate(requests))
            results = Results.of(await asyncio.gather(*calls))
            assert len(results.responses) == 1
            assert results.refusals.keys() <= {"PAYMENT_IN_PROGRESS", "PAYMENT_KEY_USED"}
            check_charged_once(await asyncio.to_thread(gateway.charges), [key])
