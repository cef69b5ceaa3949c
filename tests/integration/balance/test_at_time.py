"""GetBalance.at_time: the balance as of a time, by the entries of the ledger up to then."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from balance_service.model import AccountAt, PastAccount
from balance_service.store import past_account as store
from common.db.database import open_pools
from common.rpc.convert import time_to
from deploy.local.postgres import PostgresServer
from deploy.local.postgres_roles import ServiceUrls
from tally.balance.v1 import balance_pb2 as pb
from tests.support.balances import balance_of, charge, deduct, won
from tests.support.databases import name_of
from tests.support.refusals import refused

START: Final = datetime(2026, 3, 1, 10, 0, 0, 1, tzinfo=UTC)
MICROSECOND: Final = timedelta(microseconds=1)
SECOND: Final = timedelta(seconds=1)
FUTURE: Final = datetime(2100, 1, 1, tzinfo=UTC)


def account(user_id: str, *entries: tuple[datetime, int]) -> str:
    """SQL of an account with these entries: their times and the balances after them."""
    rows, before = [], 0
    for sequence, (time, after) in enumerate(entries, 1):
        kind = "CHARGE" if after > before else "DEDUCT"
        rows.append(
            f"INSERT INTO ledger_entries VALUES ('{user_id}', 'KRW', {sequence},"
            f" gen_random_uuid(), '{kind}', {after - before}, {after}, 'r{sequence}', NULL, NULL,"
            f" '{time.isoformat()}');"
        )
        before = after
    changed = entries[-1][0] if entries else START
    return (
        f"INSERT INTO accounts VALUES ('{user_id}', 'KRW', {before}, {len(entries)},"
        f" '{changed.isoformat()}');{''.join(rows)}"
    )


HISTORY: Final = (
    (START, 100),
    (START + MICROSECOND, 150),
    (START + MICROSECOND, 120),
    (START + SECOND, 20),
    (START + 5 * SECOND, 70),
)


def at(time: datetime, nanos: int = 0, user_id: str = "ann") -> pb.GetBalanceRequest:
    """``nanos``: added to the time."""
    message = time_to(time)
    message.nanos += nanos
    return pb.GetBalanceRequest(user_id=user_id, currency_code="KRW", at_time=message)


@pytest.fixture
def written(balance_database: ServiceUrls, postgres_server: PostgresServer) -> None:
    """Accounts with entries of given times."""
    script = (
        account("ann", *HISTORY)
        + account("opened")
        + account("clock-set-back", (START, 5), (FUTURE, 6))
    )
    postgres_server.run_sql(script, database=name_of(balance_database))


pytestmark = pytest.mark.usefixtures("written")


async def test_the_last_entry_up_to_the_time_counts(balance: Any) -> None:
    cases = {
        "at its first entry": (at(START), 1),
        "within the microsecond after it": (at(START, 999), 1),
        "of two entries at one time the last": (at(START + MICROSECOND), 3),
        "just before an entry": (at(START + SECOND - MICROSECOND, 999), 3),
        "at an entry": (at(START + SECOND), 4),
        "between two entries": (at(START + 4 * SECOND), 4),
        "at the last entry": (at(START + 5 * SECOND), 5),
        "long after it": (at(datetime.now(UTC) - SECOND), 5),
        "at an entry beyond the database's clock": (at(FUTURE, user_id="clock-set-back"), 2),
        "before that entry": (at(datetime.now(UTC), user_id="clock-set-back"), 1),
    }
    got = await asyncio.gather(*(balance.GetBalance(request) for request, _ in cases.values()))
    found = {case: each.balance.version for case, each in zip(cases, got, strict=True)}
    assert found == {case: version for case, (_, version) in cases.items()}
    fourth = got[list(cases).index("between two entries")].balance
    assert (fourth.available, fourth.update_time) == (won(20), time_to(START + SECOND))


@pytest.mark.parametrize(
    "request_",
    [
        at(START - MICROSECOND, 999),
        pb.GetBalanceRequest(user_id="ann", currency_code="KRW", at_time=Timestamp()),
        at(START, user_id="opened"),
        at(datetime.now(UTC) - SECOND, user_id="opened"),
        at(START, user_id="nobody"),
    ],
    ids=["before its first entry", "in 1970", "opened", "opened, now", "nobody"],
)
async def test_an_account_without_an_entry_then_is_not_found(
    balance: Any, request_: pb.GetBalanceRequest
) -> None:
    with refused("ACCOUNT_NOT_FOUND"):
        await balance.GetBalance(request_)


@pytest.mark.parametrize(
    "request_",
    [
        at(datetime.now(UTC) + timedelta(days=1)),
        at(datetime.max.replace(tzinfo=UTC), 999),
        at(FUTURE + MICROSECOND, user_id="clock-set-back"),
        at(datetime.now(UTC) + timedelta(days=1), user_id="nobody"),
    ],
    ids=["tomorrow", "the last time there is", "after an entry beyond the clock", "nobody"],
)
async def test_a_time_in_the_future_is_refused(
    balance: Any, request_: pb.GetBalanceRequest
) -> None:
    with refused("INVALID_FIELD") as ended:
        await balance.GetBalance(request_)
    assert [each.field for each in ended.refusal.fields] == ["at_time"]


async def test_each_version_is_found_by_the_time_of_its_entry(balance: Any) -> None:
    await balance.ChargeBalance(charge("bob", 100, "c1"))
    for number in range(5):
        await balance.DeductBalance(deduct("bob", 1 + number, f"d{number}"))
    asked = pb.ListLedgerEntriesRequest(user_id="bob", currency_code="KRW")
    entries = (await balance.ListLedgerEntries(asked)).entries
    for entry in entries:
        asked_at = balance_of("bob")
        asked_at.at_time.CopyFrom(entry.create_time)
        past = (await balance.GetBalance(asked_at)).balance
        assert (past.available, past.version) == (entry.balance_after, entry.sequence)
    assert len(entries) == 6
    assert past != (await balance.GetBalance(balance_of("bob"))).balance


async def test_the_search_is_right_for_every_length_and_time(
    balance_database: ServiceUrls, postgres_server: PostgresServer
) -> None:
    """Ledgers of 1 to 20 entries, each time in and around them, in one statement."""
    lengths = range(1, 21)
    script = "".join(
        account(
            f"u{length}", *((START + 2 * number * SECOND, 1 + number) for number in range(length))
        )
        for length in lengths
    )
    postgres_server.run_sql(script, database=name_of(balance_database))
    asked = [
        AccountAt(f"u{length}", "KRW", START + half * SECOND)
        for length in lengths
        for half in range(-1, 2 * length + 1)
    ]
    database = open_pools(balance_database.runtime, application_name="test", pool_size=4)
    async with database.reads.connect() as connection:
        found = await store.find_past_accounts(connection, asked)
    await database.close()

    def version(past: PastAccount) -> int:
        return 0 if past.account is None else past.account.version

    expected = [
        min(length, half // 2 + 1) for length in lengths for half in range(-1, 2 * length + 1)
    ]
    assert [version(past) for past in found] == expected
