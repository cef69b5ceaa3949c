"""Many duplicates of a payment over four replicas: each key is charged once.

Every race has its control: the same calls without the guard must do the damage that the guard
prevents, or the race proves nothing.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from typing import Any
from unittest.mock import AsyncMock

import pytest
import sqlalchemy as sa
from redis.asyncio import Redis
from sqlalchemy.dialects.postgresql import ARRAY

from common.db.database import open_pools
from common.db.errors import StaleRead
from common.db.idempotency import IdempotencyStore
from common.db.row_locks import CLOCK
from common.db.statements import Connection
from common.ids import new_id
from common.money import Money
from deploy.local.gateway.simulator import GatewaySimulator
from deploy.local.postgres import PostgresServer
from deploy.local.postgres_roles import ServiceUrls
from payment_service.gateway.outcomes import NotSent
from payment_service.locking import KEY_MARK
from payment_service.model.confirmation import Confirmation
from payment_service.model.payment_command import Command, ConfirmPayment, RecordOutcome
from payment_service.store import lease
from payment_service.store import payment as store
from payment_service.tables import answers, payments
from payment_service.use_cases.decider import PaymentDecider
from payment_service.use_cases.resolver import Resolver
from tally.payment.v1 import payment_pb2 as pb
from tests.support.crowd import RIVALS, Crowd, in_groups, without_redis
from tests.support.payments import (
    cancel,
    check_charged_once,
    confirm,
    held_at_gateway,
    key_of,
    payment_replicas,
)
from tests.support.refusals import outcome, refused
from tests.support.rendezvous import Rendezvous, meet_after

ROUNDS = 200
ROUNDS_AT_ONCE = 20
DUPLICATES = 5
REFUSED = {"PAYMENT_IN_PROGRESS", "PAYMENT_KEY_USED"}


@pytest.fixture
async def crowd(
    payment_database: ServiceUrls,
    postgres_server: PostgresServer,
    gateway: GatewaySimulator,
    redis_url: str,
) -> AsyncIterator[Crowd[Any]]:
    async with payment_replicas(4, payment_database, gateway, redis_url) as stubs:
        yield Crowd(stubs, payment_database, postgres_server)


async def test_of_five_requests_with_one_key_one_pays(
    crowd: Crowd[Any], gateway: GatewaySimulator
) -> None:
    keys = [key_of() for _ in range(ROUNDS)]

    async def play(key: str) -> None:
        requests = [confirm(key, f"{key}-{rival}") for rival in range(DUPLICATES)]
        (paid,), refusals = await crowd.race("ConfirmPayment", requests)
        assert (paid.payment.state, paid.replayed) == (pb.Payment.STATE_CONFIRMED, False)
        assert refusals.keys() <= REFUSED

    await in_groups(play, keys, ROUNDS_AT_ONCE)
    check_charged_once(gateway.charges(), keys)


async def test_one_request_sent_five_times_has_one_response(
    crowd: Crowd[Any], gateway: GatewaySimulator
) -> None:
    keys = [key_of() for _ in range(ROUNDS)]

    async def play(key: str) -> None:
        responses, refusals = await crowd.race("ConfirmPayment", [confirm(key, key)] * DUPLICATES)
        assert not refusals
        assert len({response.payment.SerializeToString() for response in responses}) == 1
        replayed = Counter(response.replayed for response in responses)
        assert replayed == {False: 1, True: DUPLICATES - 1}

    await in_groups(play, keys, ROUNDS_AT_ONCE)
    check_charged_once(gateway.charges(), keys)


@pytest.mark.parametrize("prefix", ["", "slow_", "decline_"])
async def test_of_a_hundred_requests_with_one_key_one_is_sent(
    crowd: Crowd[Any], gateway: GatewaySimulator, prefix: str
) -> None:
    key = key_of(prefix)
    requests = [confirm(key, f"rival-{rival}") for rival in range(RIVALS)]
    responses, refusals = await crowd.race("ConfirmPayment", requests)
    declined = 1 if prefix == "decline_" else 0
    assert refusals["PAYMENT_DECLINED"] == declined
    assert refusals.keys() <= {*REFUSED, "PAYMENT_DECLINED"}
    states = [response.payment.state for response in responses]
    assert states == [pb.Payment.STATE_CONFIRMED] * (1 - declined)
    assert gateway.charges()[key]["confirmCalls"] == 1


@pytest.mark.parametrize("redis_url", ["redis"], indirect=True)
async def test_a_wrong_mark_decides_nothing(
    crowd: Crowd[Any], gateway: GatewaySimulator, redis_url: str
) -> None:
    one, other = crowd.clients[:2]
    async with Redis.from_url(redis_url) as redis:
        for wrong in ("IN_PROGRESS:nobody", f"DONE:{new_id()}", "nonsense", ""):
            key = key_of()
            await redis.set(KEY_MARK.format(payment_key=key), wrong)
            assert not (await one.ConfirmPayment(confirm(key, f"c-{key}"))).replayed
            # A mark that is gone, as after a flush, admits no other request.
            await redis.delete(KEY_MARK.format(payment_key=key))
            with refused("PAYMENT_KEY_USED"):
                await other.ConfirmPayment(confirm(key, f"d-{key}"))
            assert gateway.charges()[key]["confirmCalls"] == 1


@pytest.fixture
def meeting(crowd: Crowd[Any], monkeypatch: pytest.MonkeyPatch) -> Rendezvous:
    """Two commands both read, without advisory locks, before either writes."""
    monkeypatch.setattr(store, "lock_advisory", AsyncMock(return_value=frozenset()))
    return meet_after(monkeypatch, store, "load")


def rivals(crowd: Crowd[Any], key: str) -> list[asyncio.Task[Any]]:
    calls = [crowd.turn(rival).ConfirmPayment(confirm(key, f"rival-{rival}")) for rival in range(2)]
    return [asyncio.ensure_future(outcome(call)) for call in calls]


@without_redis
async def test_the_unique_key_alone_is_sufficient(
    crowd: Crowd[Any], gateway: GatewaySimulator, meeting: Rendezvous
) -> None:
    key = key_of()
    with held_at_gateway(key):
        calls = rivals(crowd, key)
        # The second gets its response while the first is at the gateway.
        await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
    results = await asyncio.gather(*calls)
    assert meeting.met
    assert [each for each in results if isinstance(each, str)] == ["PAYMENT_IN_PROGRESS"]
    assert gateway.charges()[key]["confirmCalls"] == 1


@without_redis
async def test_control_without_the_unique_key_both_are_sent(
    crowd: Crowd[Any], gateway: GatewaySimulator, meeting: Rendezvous
) -> None:
    # In a thread: a sweep of these replicas that is about to commit must be able to.
    await asyncio.to_thread(crowd.sql, "ALTER TABLE payments DROP CONSTRAINT payments_key_once")
    key = key_of()
    results = await asyncio.gather(*rivals(crowd, key))
    assert meeting.met
    # Two orders are paid by one charge.
    assert [each.payment.state for each in results] == [pb.Payment.STATE_CONFIRMED] * 2
    assert gateway.charges()[key]["confirmCalls"] == 2


@without_redis
@pytest.mark.parametrize("guarded", [True, False], ids=["guarded", "control"])
async def test_the_tombstone_alone_prevents_a_cancelled_confirm(
    crowd: Crowd[Any],
    gateway: GatewaySimulator,
    meeting: Rendezvous,
    monkeypatch: pytest.MonkeyPatch,
    *,
    guarded: bool,
) -> None:
    """Each has read that there is no payment before the other writes."""
    if not guarded:
        monkeypatch.setattr(Confirmation, "request_cancel", lambda *_, **__: None)
    send = Resolver._confirm
    tombstone = asyncio.Event()

    async def after_the_claims_permission(
        resolver: Resolver, confirmation: Confirmation, **_: float
    ) -> Any:
        # Permitted before the tombstone is committed, it would be charged and given back.
        await tombstone.wait()
        return await send(resolver, confirmation)

    monkeypatch.setattr(Resolver, "_confirm", after_the_claims_permission)
    key = key_of()
    confirming = asyncio.ensure_future(outcome(crowd.turn(0).ConfirmPayment(confirm(key))))
    cancelled = await crowd.turn(1).CancelPayment(cancel())
    tombstone.set()
    confirmed = await confirming
    assert meeting.met
    assert not cancelled.HasField("payment")
    if guarded:
        assert confirmed == "PAYMENT_CANCELLED"
        assert key not in gateway.charges()
    else:
        assert gateway.charges()[key]["payment"]["status"] == "DONE"
        with refused("PAYMENT_CANCELLED"):
            await crowd.turn(0).ConfirmPayment(confirm(key))


# -- freeing a key while another replica acquires the payment ------------------------------------


class Freeing:
    """A claim whose call was not sent is freed, while another replica acquires the payment."""

    def __init__(self, database: ServiceUrls) -> None:
        self.database = open_pools(database.runtime, application_name="test", pool_size=12)
        expired = timedelta(seconds=-1)
        self.decide = PaymentDecider(
            IdempotencyStore(answers), "toss", lease=expired, confirm_window=timedelta(minutes=15)
        )
        self.holder = new_id()
        self.acquired: list[Confirmation] = []

    async def claim(self) -> Confirmation:
        command = ConfirmPayment("order-1", "ann", Money("KRW", 1), key_of(), "c1", self.holder)
        async with self.database.begin() as connection:
            (claimed,) = await self.decide(connection, [command], wait_for_locks=False)
        assert isinstance(claimed, Confirmation)
        return claimed

    async def free(self, claim: Confirmation) -> None:
        not_sent, pause = NotSent("no connection"), timedelta(0)
        payment_id = claim.payment.payment_id
        command = RecordOutcome(payment_id, claim.key, not_sent, self.holder, pause=pause)
        async with self.database.begin() as connection:
            await self.decide(connection, [command], wait_for_locks=False)

    async def left(self) -> int:
        async with self.database.reads.connect() as connection:
            return len((await connection.execute(sa.select(payments))).all())


@pytest.fixture
async def freeing(
    payment_database: ServiceUrls, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Freeing]:
    """The other replica acquires the payment between the read and the write of ``free``."""
    made = Freeing(payment_database)
    load = store.load

    async def load_then_acquire(
        connection: Connection, commands: Sequence[Command], *, wait_for_locks: bool
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
    # An array as text, as the store's own statements get it.
    ids = sa.cast(sa.bindparam(parameter, type_=sa.Text), ARRAY(sa.UUID(as_uuid=False)))
    return payments.c.payment_id == sa.func.any(ids)


async def test_a_key_is_freed_only_while_no_replica_acquires_it(freeing: Freeing) -> None:
    await freeing.free(await freeing.claim())
    assert not freeing.acquired  # its row was locked
    assert await freeing.left() == 0


@pytest.mark.parametrize("conditional", [True, False], ids=["condition", "none"])
async def test_the_conditional_delete_alone_is_sufficient(
    freeing: Freeing, monkeypatch: pytest.MonkeyPatch, *, conditional: bool
) -> None:
    """Without it, another replica is about to charge a key that is not in the table any more."""
    claim = await freeing.claim()
    without_row_locks(monkeypatch)
    if conditional:
        with pytest.raises(StaleRead):
            await freeing.free(claim)
    else:
        blind = sa.delete(payments).where(_named_in("freed_payment_id"))
        monkeypatch.setattr(store, "_DELETE", blind.returning(payments.c.payment_id))
    await freeing.free(claim)
    assert len(freeing.acquired) == 1
    assert await freeing.left() == (1 if conditional else 0)
