"""Payments looked up at the gateway by their keys, over its real protocol."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pydantic import SecretStr

from deploy.audit import gateway_api
from deploy.audit.audit import Limits, audit
from deploy.audit.errors import CannotAudit
from deploy.audit.gateway_api import GatewayAddress
from deploy.audit.report import Report
from deploy.audit.sources import Sources
from deploy.local.gateway.simulator import GatewaySimulator
from tests.integration.audit.books import DIRECT, PAID_A, UNKNOWN
from tests.integration.audit.conftest import Books


@pytest.fixture
def simulator(books: Books) -> Iterator[GatewaySimulator]:
    books.change("gateway", "UPDATE payments SET failure_code = 'REJECT_CARD_PAYMENT'"
                 " WHERE failure_code IS NOT NULL")  # fmt: skip
    with GatewaySimulator(books.gateway_record) as running:
        yield running


async def audit_by_api(books: Books, simulator: GatewaySimulator, secret_key: str = "") -> Report:
    key = SecretStr(secret_key or simulator.secret_key)
    api = GatewayAddress(simulator.url, key, days=2)
    return await audit(Sources(books.urls, gateway_api=api), Limits(settle_s=0.0))


def of_payments(report: Report) -> tuple[str, ...]:
    return next(line for line in report.lines if line.invariant == "I7").differences


async def test_payments_that_agree_hold_and_the_rest_is_named(
    books: Books, simulator: GatewaySimulator
) -> None:
    report = await audit_by_api(books, simulator)
    assert report.holds, of_payments(report)
    [left_out] = report.left_out
    assert "charges that no payment has, and sums of captures" in left_out
    figures = next(line for line in report.lines if line.invariant == "I7").figures
    assert any("looked up at the gateway, 4 charges" in figure for figure in figures)


@pytest.mark.parametrize(
    ("change", "reported"),
    [
        (
            f"DELETE FROM payments WHERE payment_key = 'key-{DIRECT[-2:]}'",
            f"payment {DIRECT} key key-{DIRECT[-2:]}: CONFIRMED over 900",
        ),
        (
            f"UPDATE payments SET order_id = 'other' WHERE payment_key = 'key-{PAID_A[-2:]}'",
            "at the gateway for other and not",
        ),
        (
            f"UPDATE payments SET balance_amount = 400 WHERE payment_key = 'key-{PAID_A[-2:]}'",
            "1,500 captured and 1,100 refunded",
        ),
        (
            f"UPDATE payments SET total_amount = 61 WHERE payment_key = 'key-{UNKNOWN[-2:]}'",
            "UNKNOWN over 60, at the gateway 61 captured",
        ),
    ],
    ids=["not there", "another order", "refunded", "another amount"],
)
async def test_payment_that_differs_is_a_breach(
    books: Books, simulator: GatewaySimulator, change: str, reported: str
) -> None:
    books.change("gateway", f"PRAGMA foreign_keys = OFF; {change}")
    report = await audit_by_api(books, simulator)
    assert any(reported in text for text in of_payments(report)), of_payments(report)


async def test_old_payments_are_not_looked_up(books: Books, simulator: GatewaySimulator) -> None:
    books.change("gateway", "DELETE FROM payments WHERE payment_key = 'key-34'")
    books.change("payment", "UPDATE payments SET create_time = '2026-01-01',"
                 " update_time = '2026-01-01' WHERE due_time IS NULL")  # fmt: skip
    assert not any("key-34" in text for text in of_payments(await audit_by_api(books, simulator)))


async def test_gateway_that_is_away_or_refuses_is_named_without_its_key(
    books: Books, simulator: GatewaySimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway_api, "BACKOFF_S", 0.0)
    with pytest.raises(CannotAudit, match=r"the gateway 127\.0\.0\.1:\d+ refuses the look-up"):
        await audit_by_api(books, simulator, secret_key="canary")
    simulator.kill()
    with pytest.raises(CannotAudit, match="does not answer") as refused:
        await audit_by_api(books, simulator, secret_key="canary")
    assert "canary" not in str(refused.value)
