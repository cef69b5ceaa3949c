"""Many duplicates of a payment over four replicas: each key is charged once.

Every race has its control: the same calls without the guard must do the damage that the guard
prevents, or the race proves nothing.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncConnection

from common.db.engines import open_engines
from common.db.errors import StaleRead
from common.db.idempotency import IdempotencyStore
from common.db.row_locks import CLOCK
from common.ids import new_id
from common.money import Money
from deploy.local.gateway.simulator import GatewaySimulator
from deploy.local.postgres import PostgresServer
from deploy.local.postgres_roles import ServiceUrls
from deploy.local.valkey import ValkeyServer
from payment_service.gateway.outcomes import NotSent
from payment_service.locking import KEY_MARK
from payment_service.model.payment import Confirmation
from payment_service.model.payment_command import Command, ConfirmPayment, RecordOutcome
from payment_service.store import lease
from payment_service.store import payment as store
from payment_service.tables import answers, payments
from payment_service.use_cases.decider import PaymentDecider
from tally.payment.v1 import payment_pb2 as pb
from tests.support.databases import name_of
from tests.support.payments import (
    cancel,
    confirm,
    held_at_gateway,
    key_of,
    payment_replicas,
    until_at_gateway,
)
from tests.support.refusals import outcome, refused
from tests.support.rendezvous import meet_after

REPLICAS = 4
ROUNDS = 200
ROUNDS_AT_ONCE = 20
DUPLICATES = 5
REFUSED = {"PAYMENT_IN_PROGRESS", "PAYMENT_KEY_USED"}


@pytest.fixture
async def replicas(
    payment_database: ServiceUrls, gateway: GatewaySimulator, redis_url: str
) -> AsyncIterator[list[Any]]:
    async with payment_replicas(REPLICAS, payment_database, gateway, redis_url) as stubs:
        yield stubs


@pytest.fixture
async def bare_replicas(
    payment_database: ServiceUrls, gateway: GatewaySimulator
) -> AsyncIterator[list[Any]]:
    """Without Redis."""
    async with payment_replicas(2, payment_database, gateway, "") as stubs:
        yield stubs


async def in_groups(play: Callable[[int], Awaitable[None]], rounds: int = ROUNDS) -> None:
    """Play the rounds, some at once: they share only the replicas."""
    for first in range(0, rounds, ROUNDS_AT_ONCE):
        await asyncio.gather(*map(play, range(first, min(first + ROUNDS_AT_ONCE, rounds))))


async def sql(server: PostgresServer, urls: ServiceUrls, text: str) -> None:
    # In a thread: a sweep of this process's replicas that is about to commit must be able to.
    await asyncio.to_thread(server.run_sql, text, database=name_of(urls))


async def test_of_five_requests_with_one_key_one_pays(
    replicas: list[Any], gateway: GatewaySimulator
) -> None:
    keys = [key_of() for _ in range(ROUNDS)]

    async def play(number: int) -> None:
        results = await asyncio.gather(
            *(
                outcome(
                    replicas[(number + rival) % REPLICAS].ConfirmPayment(
                        confirm(keys[number], f"round-{number}-rival-{rival}")
                    )
                )
                for rival in range(DUPLICATES)
            )
        )
        paid = [each for each in results if not isinstance(each, str)]
        assert len(paid) == 1
        assert paid[0].payment.state == pb.Payment.STATE_CONFIRMED
        assert not paid[0].replayed
        reasons = [each for each in results if isinstance(each, str)]
        assert len(reasons) == DUPLICATES - 1
        assert set(reasons) <= REFUSED

    await in_groups(play)
    charges = gateway.charges()
    for key in keys:
        assert charges[key]["confirmCalls"] == 1
        assert charges[key]["payment"]["status"] == "DONE"


async def test_one_request_sent_five_times_has_one_response(
    replicas: list[Any], gateway: GatewaySimulator
) -> None:
    keys = [key_of() for _ in range(ROUNDS)]

    async def play(number: int) -> None:
        request = confirm(keys[number], f"round-{number}")
        responses = await asyncio.gather(
            *(
                replicas[(number + copy) % REPLICAS].ConfirmPayment(request)
                for copy in range(DUPLICATES)
            )
        )
        assert len({response.payment.SerializeToString() for response in responses}) == 1
        assert Counter(response.replayed for response in responses) == {
            False: 1,
            True: DUPLICATES - 1,
        }

    await in_groups(play)
    charges = gateway.charges()
    assert {charges[key]["confirmCalls"] for key in keys} == {1}


@pytest.mark.parametrize("prefix", ["", "slow_", "decline_"])
async def test_of_a_hundred_requests_with_one_key_one_is_sent(
    replicas: list[Any], gateway: GatewaySimulator, prefix: str
) -> None:
    key = key_of(prefix)
    results = await asyncio.gather(
        *(
            outcome(replicas[rival % REPLICAS].ConfirmPayment(confirm(key, f"rival-{rival}")))
            for rival in range(100)
        )
    )
    first = [each for each in results if not (isinstance(each, str) and each in REFUSED)]
    assert len(first) == 1
    if prefix == "decline_":
        assert first == ["PAYMENT_DECLINED"]
    else:
        assert first[0].payment.state == pb.Payment.STATE_CONFIRMED
    assert gateway.charges()[key]["confirmCalls"] == 1


async def test_a_wrong_mark_decides_nothing(
    payment_database: ServiceUrls, gateway: GatewaySimulator, valkey_server: ValkeyServer
) -> None:
    from redis.asyncio import Redis

    redis = Redis.from_url(valkey_server.url)
    async with payment_replicas(2, payment_database, gateway, valkey_server.url) as stubs:
        for wrong in ("IN_PROGRESS:nobody", f"DONE:{new_id()}", "nonsense", ""):
            key = key_of()
            await redis.set(KEY_MARK.format(payment_key=key), wrong)
            paid = await stubs[0].ConfirmPayment(confirm(key, f"c-{key}"))
            assert not paid.replayed
            # A mark that is gone, as after a flush, admits no other request.
            await redis.delete(KEY_MARK.format(payment_key=key))
            with refused("PAYMENT_KEY_USED"):
                await stubs[1].ConfirmPayment(confirm(key, f"d-{key}"))
            assert gateway.charges()[key]["confirmCalls"] == 1
    await redis.aclose()


def without_advisory_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing_is_locked(*_: Any, **__: Any) -> frozenset[int]:
        return frozenset()

    monkeypatch.setattr(store, "lock_advisory", nothing_is_locked)


def rivals(stubs: list[Any], key: str) -> list[asyncio.Task[Any]]:
    calls = [stubs[rival].ConfirmPayment(confirm(key, f"rival-{rival}")) for rival in range(2)]
    return [asyncio.ensure_future(outcome(call)) for call in calls]


async def test_the_unique_key_alone_is_sufficient(
    bare_replicas: list[Any], gateway: GatewaySimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_advisory_locks(monkeypatch)
    meeting = meet_after(monkeypatch, store, "load")
    key = key_of()
    with held_at_gateway(key):
        calls = rivals(bare_replicas, key)
        # The second gets its response while the first is at the gateway.
        await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
    results = await asyncio.gather(*calls)
    assert meeting.met
    assert [each for each in results if isinstance(each, str)] == ["PAYMENT_IN_PROGRESS"]
    assert gateway.charges()[key]["confirmCalls"] == 1


async def test_control_without_the_unique_key_both_are_sent(
    bare_replicas: list[Any],
    gateway: GatewaySimulator,
    payment_database: ServiceUrls,
    postgres_server: PostgresServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await sql(
        postgres_server, payment_database, "ALTER TABLE payments DROP CONSTRAINT payments_key_once"
    )
    without_advisory_locks(monkeypatch)
    meeting = meet_after(monkeypatch, store, "load")
    key = key_of()
    results = await asyncio.gather(*rivals(bare_replicas, key))
    assert meeting.met
    # Two orders are paid by one charge.
    assert [each.payment.state for each in results] == [pb.Payment.STATE_CONFIRMED] * 2
    assert gateway.charges()[key]["confirmCalls"] == 2


async def cancel_against_confirm(stubs: list[Any], key: str) -> None:
    """Run both: each has read that there is no payment before the other writes."""
    with held_at_gateway(key):
        confirming = asyncio.ensure_future(outcome(stubs[0].ConfirmPayment(confirm(key))))
        cancelled = await stubs[1].CancelPayment(cancel())
    await confirming
    assert not cancelled.HasField("payment")


async def test_the_tombstone_alone_gives_a_cancelled_payment_back(
    bare_replicas: list[Any], gateway: GatewaySimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_advisory_locks(monkeypatch)
    meeting = meet_after(monkeypatch, store, "load")
    key = key_of()
    await cancel_against_confirm(bare_replicas, key)
    assert meeting.met
    await until_at_gateway(gateway, key, "CANCELED")


async def test_control_without_the_tombstone_the_charge_stays(
    bare_replicas: list[Any], gateway: GatewaySimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_advisory_locks(monkeypatch)
    monkeypatch.setattr(Confirmation, "request_cancel", lambda *_, **__: None)
    meeting = meet_after(monkeypatch, store, "load")
    key = key_of()
    await cancel_against_confirm(bare_replicas, key)
    assert meeting.met
    assert gateway.charges()[key]["payment"]["status"] == "DONE"
    with refused("PAYMENT_CANCELLED"):
        await bare_replicas[0].ConfirmPayment(confirm(key))


# -- freeing a key while another replica acquires the payment --------------------------------------


class Freeing:
    """A claim whose call was not sent is freed, while another replica acquires the payment."""

    def __init__(self, database: ServiceUrls) -> None:
        self.database = open_engines(database.runtime, application_name="test", pool_size=12)
        expired = timedelta(seconds=-1)
        self.decide = PaymentDecider(IdempotencyStore(answers), "toss", lease=expired)
        self.holder = new_id()
        self.acquired: list[Confirmation] = []

    async def claim(self) -> Confirmation:
        command = ConfirmPayment("order-1", "ann", Money("KRW", 1), key_of(), "c1", self.holder)
        async with self.database.begin() as connection:
            (claimed,) = await self.decide(connection, [command], wait_for_locks=False)
        assert isinstance(claimed, Confirmation)
        return claimed

    async def free(self, claim: Confirmation) -> None:
        command = RecordOutcome(
            claim.payment.payment_id,
            claim.key,
            NotSent("no connection"),
            self.holder,
            pause=timedelta(0),
        )
        async with self.database.begin() as connection:
            await self.decide(connection, [command], wait_for_locks=False)

    async def left(self) -> int:
        async with self.database.reads.connect() as connection:
            return len((await connection.execute(sa.select(payments))).all())


@pytest.fixture
async def freeing(
    payment_database: ServiceUrls, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Freeing]:
    """Another replica acquires the payment between the read and the write of ``free``."""
    made = Freeing(payment_database)
    load = store.load

    async def load_then_acquire(
        connection: AsyncConnection, commands: Sequence[Command], *, wait_for_locks: bool
    ) -> store.LoadedPayments:
        loaded = await load(connection, commands, wait_for_locks=wait_for_locks)
        if isinstance(commands[0], RecordOutcome):
            async with made.database.begin() as other:
                made.acquired += await lease.acquire_due(
                    other, holder=new_id(), lease=timedelta(seconds=60), size=10
                )
        return loaded

    monkeypatch.setattr(store, "load", load_then_acquire)
    yield made
    await made.database.close()


def without_row_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read the rows instead of locking them."""
    identity = [
        payments.c[name].label(f"found_{name}")
        for name in ("payment_id", "payment_key", "user_id", "request_id")
    ]
    read = sa.select(CLOCK.label("now"), payments, *identity)
    monkeypatch.setattr(store, "_LOCK_FREE", read.where(_named_in("id_payment_id")))


def _named_in(parameter: str) -> sa.ColumnElement[bool]:
    ids: sa.BindParameter[Any] = sa.bindparam(parameter, type_=ARRAY(sa.UUID(as_uuid=False)))
    return payments.c.payment_id == sa.func.any(ids)


async def test_a_key_is_freed_only_while_no_replica_acquires_it(freeing: Freeing) -> None:
    await freeing.free(await freeing.claim())
    assert not freeing.acquired  # its row was locked
    assert await freeing.left() == 0


async def test_the_conditional_delete_alone_is_sufficient(
    freeing: Freeing, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = await freeing.claim()
    without_row_locks(monkeypatch)
    with pytest.raises(StaleRead):
        await freeing.free(claim)
    assert len(freeing.acquired) == 1
    await freeing.free(claim)
    assert await freeing.left() == 1


async def test_control_without_lock_and_condition_a_key_in_use_is_freed(
    freeing: Freeing, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = await freeing.claim()
    without_row_locks(monkeypatch)
    blind = sa.delete(payments).where(_named_in("freed_payment_id"))
    monkeypatch.setattr(store, "_DELETE", blind.returning(payments.c.payment_id))
    await freeing.free(claim)
    # Another replica is about to charge a key that is not in the table any more.
    assert len(freeing.acquired) == 1
    assert await freeing.left() == 0
