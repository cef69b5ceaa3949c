"""A recent audit of large books finds what was touched once, and reads its rows by indexes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pytest
import pytest_asyncio
import sqlalchemy as sa
from sqlalchemy.engine import make_url

from deploy.audit import touched
from deploy.audit.audit import Limits, check_books
from deploy.audit.snapshots import Books, take_snapshots
from deploy.audit.sources import Sources
from deploy.audit.units import USER
from deploy.local.plan import SERVICES
from tests.integration.audit.payment_books import write_gateway
from tests.support.databases import Databases

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROWS: Final = 20_000
"""In each table that grows with traffic; a few of them were touched."""
HOURS: Final = 3
"""One row an hour, and the last ones are asked for."""
# Of row n: its time, and an id that is its own, or that a hundred rows have.
_TIME: Final = f"now() - ({ROWS} - n) * interval '1 hour'"
_ID: Final = "('01900000-0000-7000-8000-' || lpad({}::text, 12, '0'))::uuid"
_GROUP: Final = _ID.format("(n % 200)")
_OWN: Final = _ID.format("n")


def _answers(*methods: str) -> str:
    names = ", ".join(f"'{method}'" for method in methods)
    return f"""
INSERT INTO answers (method, scope, request_id, state, digest, body, create_time)
SELECT (ARRAY[{names}])[1 + n % {len(methods)}], 'u' || n, 'r' || n, 'ANSWERED', '',
       json_build_object('order_id', {_OWN}, 'payment_id', {_OWN}, 'coupon_id', {_OWN}), {_TIME}
  FROM rows
"""


FILL: Final = {
    "balance": [
        _answers("ChargeBalance", "DeductBalance", "RefundDeduction"),
        f"""
INSERT INTO accounts (user_id, currency_code, available_minor, version, update_time)
SELECT 'u' || n, 'KRW', 0, 1, {_TIME} FROM rows
""",
        f"""
INSERT INTO ledger_entries
SELECT 'u' || n, 'KRW', 1, {_OWN}, 'DEDUCT', -1, 1, {_OWN} || ':deduct_balance', NULL, NULL,
       {_TIME}
  FROM rows
""",
    ],
    "coupon": [
        _answers("IssueCoupon", "RedeemCoupon", "RestoreCoupon", "QueueCoupon"),
        f"""
INSERT INTO campaigns (campaign_id, name, percent_discount, quantity, issued, start_time,
                       end_time, coupon_lifetime_us, request_id, create_time)
SELECT {_OWN}, 'c', 1, 1000, 100, now(), now() + interval '1 day', 1, 'r' || n, {_TIME}
  FROM rows WHERE n < 200
""",
        f"""
INSERT INTO coupons (coupon_id, campaign_id, user_id, issue_number, request_id, issue_time,
                     expire_time, redeem_request_id, order_id, redeem_time, ticket_id)
SELECT {_OWN}, {_GROUP}, 'u' || n, 1 + n / 200, 'r' || n, {_TIME}, now(),
       {_OWN} || ':redeem_coupon', 'o', {_TIME}, CASE WHEN n % 2 = 0 THEN {_OWN} END
  FROM rows
""",
        f"""
INSERT INTO redemptions (user_id, request_id, coupon_id, order_id, currency_code,
                         order_amount_minor, discount_minor, redeem_time, restore_request_id,
                         restore_time)
SELECT 'u' || n, {_OWN} || ':redeem_coupon', {_OWN}, 'o', 'KRW', 1, 1, {_TIME},
       CASE WHEN n % 2 = 0 THEN 'x' || n END, CASE WHEN n % 2 = 0 THEN {_TIME} END
  FROM rows
""",
    ],
    "order": [
        _answers("CreateOrder", "PayOrder", "CancelOrder"),
        f"""
INSERT INTO products (product_id, name, currency_code, price_minor, stocked, reserved, sold,
                      version, create_time, update_time)
SELECT {_OWN}, 'p', 'KRW', 1, 0, 0, 0, 1, {_TIME}, {_TIME} FROM rows
""",
        f"""
INSERT INTO stock_entries (kind, request_id, product_id, quantity, stocked_after, product_version,
                           create_time)
SELECT 'CREATED', 'r' || n, {_OWN}, 0, 0, 1, {_TIME} FROM rows
""",
        f"""
INSERT INTO seats (product_id, label, state, version, request_id)
SELECT {_GROUP}, 'A' || n, 'FREE', 1, 'r' FROM rows
""",
        f"""
INSERT INTO order_seats (order_id, product_id, label, live)
SELECT {_OWN}, {_GROUP}, 'A' || n, true FROM rows
""",
        f"""
INSERT INTO order_items (order_id, product_id, quantity, unit_price_minor)
SELECT {_OWN}, {_GROUP}, 1, 1 FROM rows
""",
        f"""
INSERT INTO orders (order_id, user_id, request_id, currency_code, subtotal_minor, discount_minor,
                    paid_by_balance_minor, paid_by_gateway_minor, state, failure_reason, version,
                    create_time, expire_time, update_time)
SELECT {_OWN}, 'u' || n, 'r' || n, 'KRW', 0, 0, 0, 0, 'PAID', '', 1, now(), now(), {_TIME}
  FROM rows
""",
        f"""
INSERT INTO sagas (saga_id, kind, plan_version, order_id, user_id, request_id, asked, state, steps,
                   facts, epoch, snapshot, lease_until, attempts, waits_for, last_error,
                   resolution_reason, create_time, update_time)
SELECT {_OWN}, 'PAY_ORDER', 2, {_OWN}, 'u' || n, 'r' || n, '{{}}', 'COMPLETED', '[]', '{{}}', 1, 0,
       now(), 0, '{{}}', '', '', now(), {_TIME}
  FROM rows
""",
    ],
    "payment": [
        _answers("ConfirmPayment", "CancelPayment"),
        f"""
INSERT INTO payments (payment_id, payment_key, user_id, request_id, order_id, currency_code,
                      amount_minor, gateway, state, gateway_transaction_id, tries, version,
                      create_time, update_time, refunded_minor, refunded_outside_minor,
                      confirm_time)
SELECT {_OWN}, 'k' || n, 'u' || n, {_OWN} || ':confirm_payment', 'o', 'KRW', 5, 'toss',
       'CONFIRMED', 't' || n, 0, 1, now(), {_TIME}, 0, 0, now()
  FROM rows
""",
    ],
}
FEW: Final = {"campaigns", "campaign_shares", "heartbeat"}
"""Tables that do not grow with traffic."""
CATALOGUE: Final = {"products", "stock_entries"}
"""Neither do these. They are read whole to find what was touched, and by indexes otherwise."""
OF_WHAT_IS_OPEN: Final = {"sagas_active", "orders_due", "payments_due", "payments_refund_refused"}
"""Partial indexes that may be read from end to end."""
FINDING: Final = "AS touched (id)"
"""In the statements that find what was touched, by the times of rows."""
LINES: Final = {"order_items", "orders"}
OF_A_PRODUCT: Final = "order_items WHERE product_id = ANY (CAST"
"""No index serves the lines of a product (``deploy.audit.order``), and their orders are as many."""


@dataclass(frozen=True)
class Read:
    """A statement of an audit, and its plan."""

    service: str
    sql: str
    plan: dict[str, Any]

    def wholes(self) -> set[str]:
        """The tables of which it reads everything, or an index from end to end."""
        return {*_wholes(self.plan)} - FEW


def _wholes(node: dict[str, Any]) -> Iterator[str]:
    kind, index = node["Node Type"], node.get("Index Name", "")
    if kind == "Seq Scan" or (
        kind in {"Index Scan", "Index Only Scan", "Bitmap Index Scan"}
        and "Index Cond" not in node
        and index not in OF_WHAT_IS_OPEN
    ):
        yield node.get("Relation Name", index)
    for part in node.get("Plans", ()):
        yield from _wholes(part)


@pytest.fixture(scope="module")
def large(databases: Databases) -> Iterator[dict[str, str]]:
    with ExitStack() as exits:
        urls = {
            service: exits.enter_context(databases.clone(service)).audit for service in SERVICES
        }
        for service, url in urls.items():
            script = "".join(
                f"WITH rows AS (SELECT generate_series(1, {ROWS}) AS n) {insert};"
                for insert in FILL[service]
            )
            name = str(make_url(url).database)
            databases.server.run_sql(script, database=name)
            databases.server.run_sql("VACUUM ANALYZE", database=name)
        yield urls


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def snapshots(large: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Any:
    record: Path = tmp_path_factory.mktemp("gateway") / "gateway.sqlite3"
    write_gateway(record)
    async with take_snapshots(Sources(large, record)) as books:
        yield books


async def reads_of_an_audit(books: Books) -> AsyncIterator[Read]:
    """Every statement of a recent audit, with the plan for its own parameters."""
    executed: list[tuple[str, str, Any]] = []
    for service, connection in books.databases.items():

        def on_execute(
            _connection: object,
            _cursor: object,
            sql: str,
            parameters: Any,
            *_: object,
            service: str = service,
        ) -> None:
            executed.append((service, sql, parameters))

        sa.event.listen(connection.sync_connection, "before_cursor_execute", on_execute)
    since = datetime.now(UTC) - timedelta(hours=HOURS)
    await check_books(books, Limits(), dict.fromkeys(SERVICES, since))
    for service, sql, parameters in tuple(executed):
        explained = await books[service].exec_driver_sql(f"EXPLAIN (FORMAT JSON) {sql}", parameters)
        document = explained.scalar_one()
        plans = json.loads(document) if isinstance(document, str) else document
        yield Read(service, sql, plans[0]["Plan"])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def reads(snapshots: Books) -> list[Read]:
    return [read async for read in reads_of_an_audit(snapshots)]


async def test_what_was_touched_is_found_once_for_all_checks(reads: list[Read]) -> None:
    finding = [read.service for read in reads if FINDING in read.sql]
    units = [service for service, units in touched.UNITS.items() for _ in units]
    assert sorted(finding) == sorted(units)


async def test_what_was_touched_is_found_by_indexes(reads: list[Read]) -> None:
    for read in reads:
        if FINDING in read.sql:
            assert read.wholes() <= CATALOGUE, read.sql


async def test_every_other_read_of_a_table_is_by_an_index(reads: list[Read]) -> None:
    checked = [read for read in reads if FINDING not in read.sql]
    assert {read.service for read in checked} == {*SERVICES}
    assert len(checked) > 40
    for read in checked:
        allowed = LINES if OF_A_PRODUCT in read.sql else set()
        assert read.wholes() <= allowed, read.sql


async def test_control_a_condition_that_no_index_serves_is_seen(
    snapshots: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    users = touched.UNITS["balance"][USER]
    tables = {**users.tables, "ledger_entries": "user_id || '' = ANY ({ids})"}
    sql = replace(users, tables=tables).of_ids("SELECT count(*) FROM ledger_entries", ["u1"])
    explained = await snapshots["balance"].execute(
        sa.text(f"EXPLAIN (FORMAT JSON) {sql.text}"), {"ids": ["u1"]}
    )
    assert Read("balance", sql.text, explained.scalar_one()[0]["Plan"]).wholes() == {
        "ledger_entries"
    }
