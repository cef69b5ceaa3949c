"""Payments looked up at the gateway by their keys, over its real protocol."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Sequence
from typing import Final

import asyncpg
import pytest
from pydantic import SecretStr
from sqlalchemy.engine import make_url

from deploy.audit import gateway_api
from deploy.audit.audit import Limits, audit
from deploy.audit.gateway_api import GatewayAddress, GatewayApi
from deploy.audit.gateway_records import ChargeRecord
from deploy.audit.report import Report
from deploy.audit.sources import Sources
from deploy.local.gateway.simulator import GatewaySimulator
from deploy.local.postgres_files import SUPERUSER
from tests.integration.audit.books import DIRECT, PAID_A, UNKNOWN
from tests.integration.audit.conftest import Books

SESSIONS: Final = """
SELECT count(*) FROM pg_stat_activity
 WHERE application_name = 'tally audit' AND datname = ANY ($1::text[])
"""


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


async def test_gateway_that_is_away_or_refuses_leaves_the_verdict_on_the_books(
    books: Books, simulator: GatewaySimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway_api, "BACKOFF_S", 0.0)
    books.change("order", "UPDATE products SET reserved = 0")
    for answers, reason in ((True, r"the gateway 127\.0\.0\.1:\d+ refuses"), (False, "not answer")):
        if not answers:
            simulator.kill()
        report = await audit_by_api(books, simulator, secret_key="canary")
        assert report.broken == ["I4"]
        assert re.search(rf"payments at the gateway, after the first 0: .*{reason}",
                         report.left_out[0])  # fmt: skip
        assert "the gateway's side was left out" in str(report.lines)
        assert "canary" not in str(report)


async def test_snapshots_are_closed_while_the_gateway_is_asked(
    books: Books, simulator: GatewaySimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would hold back VACUUM for as long as the look-ups take."""
    address = make_url(books.urls["order"]).set(
        username=SUPERUSER, password=books.server.files.passwords[SUPERUSER]
    )
    watching = await asyncpg.connect(address.render_as_string(hide_password=False))
    names = [make_url(url).database for url in books.urls.values()]
    looked_up = GatewayApi.records_of
    asked = 0

    async def watched(api: GatewayApi, keys: Sequence[str]) -> dict[str, ChargeRecord]:
        nonlocal asked
        asked += len(keys)
        for _ in range(500):
            # A session ends a moment after its connection.
            open_ = await watching.fetchval(SESSIONS, names)
            if not open_:
                return await looked_up(api, keys)
            await asyncio.sleep(0.01)
        raise AssertionError(f"{open_} snapshots are open")

    monkeypatch.setattr(GatewayApi, "records_of", watched)
    try:
        assert (await audit_by_api(books, simulator)).holds
    finally:
        await watching.close()
    assert asked > 0
