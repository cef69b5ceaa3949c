"""What of a payment outlives its call gets one grace when the replica stops."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from payment_service.use_cases.payments import Payments

GRACE_S = 0.2


class Named:
    """A gateway that is never called."""

    name = "none"


def stopping(monkeypatch: pytest.MonkeyPatch) -> tuple[Payments, list[float]]:
    """Payments, and the times that its resolver is given to end in."""
    gateway: Any = Named()
    nothing: Any = None
    payments = Payments(nothing, gateway, nothing, lease_s=15, resolve_concurrency=1)
    given: list[float] = []

    async def close(limit_s: float) -> None:
        given.append(limit_s)

    monkeypatch.setattr(payments.resolver, "close", close)
    return payments, given


async def test_the_resolver_gets_what_calls_leave_of_the_grace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    payments, given = stopping(monkeypatch)
    endless = payments._calls.begin(asyncio.Event().wait())
    await payments.close(GRACE_S)
    assert endless.cancelled()
    assert given[0] < GRACE_S / 2


async def test_the_resolver_gets_all_of_it_where_no_call_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    payments, given = stopping(monkeypatch)
    await payments.close(600)
    # Nothing was waited for: what is missing is the time of a few statements.
    assert 300 < given[0] <= 600
