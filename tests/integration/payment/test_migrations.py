"""Payments of the earlier release, on the schema of this one, and its writes on that schema."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import asyncpg
import pytest

from common.db.migrations import migrate
from deploy.local.gateway.simulator import GatewaySimulator
from deploy.local.postgres import PostgresServer
from deploy.local.postgres_roles import ServiceUrls
from tally.payment.v1 import payment_pb2 as pb
from tests.support.databases import ROOT
from tests.support.payments import (
    cancel,
    charge,
    confirm,
    key_of,
    only_payment,
    payment_replicas,
    until,
    until_state,
)
from tests.support.refusals import refused

VERSIONS: Final = ROOT / "payment_service" / "migrations"
OF_EARLIER_RELEASE: Final = (
    "payment_id, payment_key, user_id, request_id, order_id, currency_code, amount_minor, gateway,"
    " state, gateway_transaction_id, failure_code, cancel_reason, cancel_request_id, holder,"
    " due_time, tries, version, create_time, update_time"
)
COLUMNS: Final = {
    "state": "'UNKNOWN'",
    "transaction": "NULL",
    "cancel_reason": "NULL",
    "cancel_request_id": "NULL",
    "due_time": "now() + interval '1 h'",
    "age": "1 h",
}


@pytest.fixture
def urls(postgres_server: PostgresServer) -> Iterator[ServiceUrls]:
    """An empty database."""
    postgres_server.provision("payment")
    try:
        yield postgres_server.create_database("test_payment_migrations", service="payment")
    finally:
        postgres_server.drop_database("test_payment_migrations")


@pytest.fixture
async def earlier(urls: ServiceUrls, tmp_path: Path) -> Any:
    """A connection to a database with the schema of the earlier release."""
    released = tmp_path / "released"
    released.mkdir()
    shutil.copy(VERSIONS / "0001_payments.py", released)
    await migrate(urls.owner, released)
    connection = await asyncpg.connect(urls.runtime)
    yield connection
    await connection.close()


async def insert(connection: Any, key: str, **changes: str) -> None:
    """Insert a payment as the earlier release does, of the user ann and the request c1."""
    row = COLUMNS | changes
    await connection.execute(
        f"INSERT INTO payments ({OF_EARLIER_RELEASE}) VALUES (gen_random_uuid(), $1, 'ann', 'c1',"
        f" 'order-1', 'KRW', 15000, 'toss', {row['state']}, {row['transaction']}, NULL,"
        f" {row['cancel_reason']}, {row['cancel_request_id']}, NULL, {row['due_time']}, 9, 20,"
        f" now() - interval '{row['age']}', now())",
        key,
    )


async def test_a_cancel_that_was_refused_before_is_told_as_refused(
    earlier: Any, urls: ServiceUrls, gateway: GatewaySimulator
) -> None:
    key = key_of("no_refund_")
    await charge(gateway, key, 15_000)
    cancelled = {"cancel_reason": "'no longer wanted'", "cancel_request_id": "'x1'"}
    await insert(earlier, key, state="'CONFIRMED'", transaction="'t'", **cancelled)
    await migrate(urls.owner, VERSIONS)
    async with payment_replicas(2, urls, gateway, "") as (one, other):
        assert (await only_payment(one)).state == pb.Payment.STATE_CONFIRMED
        await earlier.execute("UPDATE payments SET due_time = now()")
        refusal = await until(lambda: only_payment(one), lambda found: found.refund_refusal_code)
        assert refusal.refund_refusal_code == "NOT_CANCELABLE_PAYMENT"
        for replica in (one, other):
            with refused("REFUND_REFUSED"):
                await replica.CancelPayment(cancel())
        fence = await one.CancelPayment(cancel(record_only=True))
        assert fence.payment.HasField("cancel_request_time")
    assert gateway.charges()[key]["cancelCalls"] == 1


@pytest.mark.parametrize("cancelled", [True, False])
async def test_an_unknown_payment_of_a_resolved_saga_is_decided(
    earlier: Any, urls: ServiceUrls, gateway: GatewaySimulator, cancelled: bool
) -> None:
    key = key_of()
    await insert(earlier, key)
    await migrate(urls.owner, VERSIONS)
    async with payment_replicas(2, urls, gateway, "") as (one, other):
        unknown = await only_payment(one)
        if cancelled:
            await one.CancelPayment(cancel(record_only=True))
        over = "confirm_time = confirm_time - interval '1 h'"
        await earlier.execute(f"UPDATE payments SET due_time = now(), {over}")
        ended = pb.Payment.STATE_DECLINED if cancelled else pb.Payment.STATE_CONFIRMED
        await until_state(other, unknown.payment_id, ended)
    assert (key in gateway.charges()) is not cancelled


async def test_the_earlier_release_writes_on_the_new_schema(
    earlier: Any, urls: ServiceUrls, gateway: GatewaySimulator
) -> None:
    await migrate(urls.owner, VERSIONS)
    key = key_of()
    await charge(gateway, key, 15_000)
    await insert(earlier, key, state="'PENDING'")
    for changes in (
        "state = 'UNKNOWN', tries = tries + 1",
        "state = 'CONFIRMED', gateway_transaction_id = 't', due_time = NULL",
        "cancel_reason = 'r', cancel_request_id = 'x9', due_time = now()",
        "state = 'CANCELLED', due_time = NULL",
    ):
        await earlier.execute(f"UPDATE payments SET {changes}")
    async with payment_replicas(1, urls, gateway, "") as (one,):
        found = await only_payment(one)
        assert (found.state, found.refunded) == (pb.Payment.STATE_CANCELLED, found.amount)
        with refused("PAYMENT_CANCELLED"):
            await one.ConfirmPayment(confirm(key))


async def test_a_migration_that_ended_in_the_middle_is_repeated(
    earlier: Any, urls: ServiceUrls
) -> None:
    """Two jobs at once, the first of which left an index that is not valid."""
    owner = await asyncpg.connect(urls.owner)
    await owner.execute("CREATE INDEX payments_by_request ON payments (order_id)")
    await asyncio.gather(*(migrate(urls.owner, VERSIONS) for _ in range(3)))
    indexed = await owner.fetchval(
        "SELECT pg_get_indexdef('payments_by_request'::regclass)"
        " FROM pg_index WHERE indexrelid = 'payments_by_request'::regclass AND indisvalid"
    )
    assert indexed.endswith("(request_id)")
    await owner.execute("DROP TABLE heartbeat")
    await owner.execute("UPDATE alembic_version SET version_num = 'payment_0001'")
    await migrate(urls.owner, VERSIONS)
    unchecked = "SELECT count(*) FROM pg_constraint WHERE NOT convalidated"
    assert await owner.fetchval(unchecked) == 0
    await owner.close()
