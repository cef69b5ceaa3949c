"""One payment out of many duplicates, over four replicas: each key is charged once.

Every race has its control: the same calls with the guard taken away from outside must do the damage
that the guard prevents, or the race proves nothing.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY

from common.db.engines import open_engines
from common.db.errors import StaleRead
from common.db.idempotency import IdempotencyStore
from common.ids import new_id
from common.money import Money
from deploy.local.gateway.simulator import GatewaySimulator
from deploy.local.postgres import PostgresServer
from deploy.local.postgres_roles import ServiceUrls
from deploy.local.valkey import ValkeyServer
from payment_service import store
from payment_service.gateway import NotSent
from payment_service.locking import KEY_MARK
from payment_service.model import Confirmation, ConfirmPayment, Settle
from payment_service.store import writes
from payment_service.tables import answers, payments
from payment_service.use_cases.decide import Decider, Open
from tally.payment.v1 import payment_pb2 as pb
from tests.support.databases import Databases
from tests.support.payments import (
    cancel,
    confirm,
    held,
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
TURNED_AWAY = {"PAYMENT_IN_PROGRESS", "PAYMENT_KEY_USED"}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewaySimulator]:
    data_file = tmp_path_factory.mktemp("gateway") / "gateway.db"
    with GatewaySimulator(data_file, slow_ms=400) as running:
        yield running


@pytest.fixture
def database(databases: Databases) -> Iterator[ServiceUrls]:
    with databases.clone("payment") as urls:
        yield urls


@pytest.fixture(params=["redis", "no-redis"])
def redis_url(request: pytest.FixtureRequest) -> str:
    if request.param == "no-redis":
        return ""
    server: ValkeyServer = request.getfixturevalue("valkey_server")
    return server.url


@pytest.fixture
async def replicas(
    database: ServiceUrls, gateway: GatewaySimulator, redis_url: str
) -> AsyncIterator[list[Any]]:
    async with payment_replicas(REPLICAS, database, gateway, redis_url) as stubs:
        yield stubs


@pytest.fixture
async def bare_replicas(
    database: ServiceUrls, gateway: GatewaySimulator
) -> AsyncIterator[list[Any]]:
    """Without Redis."""
    async with payment_replicas(2, database, gateway, "") as stubs:
        yield stubs


async def in_groups(play: Callable[[int], Awaitable[None]], rounds: int = ROUNDS) -> None:
    """Play the rounds, some at once: they share nothing but the replicas."""
    for first in range(0, rounds, ROUNDS_AT_ONCE):
        await asyncio.gather(*map(play, range(first, min(first + ROUNDS_AT_ONCE, rounds))))


async def sql(server: PostgresServer, urls: ServiceUrls, text: str) -> None:
    # In a thread: the replicas of this process must go on, or a sweep of theirs that is about to
    # commit would be waited for in vain.
    await asyncio.to_thread(server.run_sql, text, database=urls.owner.rpartition("/")[2])


async def test_of_five_requests_on_one_key_one_pays(
    replicas: list[Any], gateway: GatewaySimulator
) -> None:
    keys = [key_of() for _ in range(ROUNDS)]

    async def play(number: int) -> None:
        told = await asyncio.gather(
            *(
                outcome(
                    replicas[(number + rival) % REPLICAS].ConfirmPayment(
                        confirm(keys[number], f"round-{number}-rival-{rival}")
                    )
                )
                for rival in range(DUPLICATES)
            )
        )
        paid = [each for each in told if not isinstance(each, str)]
        assert len(paid) == 1
        assert paid[0].payment.state == pb.Payment.STATE_CONFIRMED
        assert not paid[0].replayed
        turned_away = [each for each in told if isinstance(each, str)]
        assert len(turned_away) == DUPLICATES - 1
        assert set(turned_away) <= TURNED_AWAY

    await in_groups(play)
    charges = gateway.charges()
    for key in keys:
        assert charges[key]["confirmCalls"] == 1
        assert charges[key]["payment"]["status"] == "DONE"


async def test_one_request_sent_five_times_has_one_answer(
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
async def test_of_a_hundred_requests_on_one_key_one_reaches_the_gateway(
    replicas: list[Any], gateway: GatewaySimulator, prefix: str
) -> None:
    key = key_of(prefix)
    told = await asyncio.gather(
        *(
            outcome(replicas[rival % REPLICAS].ConfirmPayment(confirm(key, f"rival-{rival}")))
            for rival in range(100)
        )
    )
    first = [each for each in told if not (isinstance(each, str) and each in TURNED_AWAY)]
    assert len(first) == 1
    if prefix == "decline_":
        assert first == ["PAYMENT_DECLINED"]
    else:
        assert first[0].payment.state == pb.Payment.STATE_CONFIRMED
    assert gateway.charges()[key]["confirmCalls"] == 1


async def test_a_lying_mark_decides_nothing(
    database: ServiceUrls, gateway: GatewaySimulator, valkey_server: ValkeyServer
) -> None:
    from redis.asyncio import Redis

    redis = Redis.from_url(valkey_server.url)
    async with payment_replicas(2, database, gateway, valkey_server.url) as stubs:
        for lie in ("IN_PROGRESS:nobody", f"DONE:{new_id()}", "nonsense", ""):
            key = key_of()
            await redis.set(KEY_MARK.format(payment_key=key), lie)
            paid = await stubs[0].ConfirmPayment(confirm(key, f"c-{key}"))
            assert not paid.replayed
            # And one that is gone, as after a flush, lets nobody through.
            await redis.delete(KEY_MARK.format(payment_key=key))
            with refused("PAYMENT_KEY_USED"):
                await stubs[1].ConfirmPayment(confirm(key, f"d-{key}"))
            assert gateway.charges()[key]["confirmCalls"] == 1
    await redis.aclose()


def without_places(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing_is_locked(*_: Any, **__: Any) -> set[int]:
        return set()

    monkeypatch.setattr(store, "lock_places", nothing_is_locked)


def rivals(stubs: list[Any], key: str) -> list[asyncio.Task[Any]]:
    calls = [stubs[rival].ConfirmPayment(confirm(key, f"rival-{rival}")) for rival in range(2)]
    return [asyncio.ensure_future(outcome(call)) for call in calls]


async def test_the_unique_key_alone_is_enough(
    bare_replicas: list[Any], gateway: GatewaySimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_places(monkeypatch)
    meeting = meet_after(monkeypatch, store, "load")
    key = key_of()
    with held(key):
        calls = rivals(bare_replicas, key)
        # Whoever comes second is told while the first is at the gateway.
        await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
    told = await asyncio.gather(*calls)
    assert meeting.met
    assert [each for each in told if isinstance(each, str)] == ["PAYMENT_IN_PROGRESS"]
    assert gateway.charges()[key]["confirmCalls"] == 1


async def test_control_without_the_unique_key_both_reach_the_gateway(
    bare_replicas: list[Any],
    gateway: GatewaySimulator,
    database: ServiceUrls,
    postgres_server: PostgresServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await sql(postgres_server, database, "ALTER TABLE payments DROP CONSTRAINT payments_key_once")
    without_places(monkeypatch)
    meeting = meet_after(monkeypatch, store, "load")
    key = key_of()
    told = await asyncio.gather(*rivals(bare_replicas, key))
    assert meeting.met
    # Two orders are told that they are paid, by one charge.
    assert [each.payment.state for each in told] == [pb.Payment.STATE_CONFIRMED] * 2
    assert gateway.charges()[key]["confirmCalls"] == 2


async def cancel_against_confirm(stubs: list[Any], key: str) -> None:
    """Both have seen that there is nothing yet before either writes."""
    with held(key):
        confirming = asyncio.ensure_future(outcome(stubs[0].ConfirmPayment(confirm(key))))
        undone = await stubs[1].CancelPayment(cancel())
    await confirming
    assert not undone.HasField("payment")


async def test_the_answers_alone_keep_a_cancelled_confirmation_from_lasting(
    bare_replicas: list[Any], gateway: GatewaySimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_places(monkeypatch)
    meeting = meet_after(monkeypatch, store, "load")
    key = key_of()
    await cancel_against_confirm(bare_replicas, key)
    assert meeting.met
    await until_at_gateway(gateway, key, "CANCELED")


async def test_control_without_places_and_answers_a_cancelled_confirmation_stays_charged(
    bare_replicas: list[Any], gateway: GatewaySimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_places(monkeypatch)
    monkeypatch.setattr(Confirmation, "ask_cancel", lambda *_, **__: None)
    meeting = meet_after(monkeypatch, store, "load")
    key = key_of()
    await cancel_against_confirm(bare_replicas, key)
    assert meeting.met
    assert gateway.charges()[key]["payment"]["status"] == "DONE"
    with refused("PAYMENT_CANCELLED"):
        await bare_replicas[0].ConfirmPayment(confirm(key))


# -- freeing a key against taking the payment up --------------------------------------------------


class Freeing:
    """A claim whose call never left is freed, while another replica takes the payment up."""

    def __init__(self, database: ServiceUrls) -> None:
        self.database = open_engines(database.runtime, application_name="test", pool_size=12)
        self.decide = Decider(IdempotencyStore(answers), "toss", timedelta(seconds=-1))
        self.holder = new_id()

    async def claim(self) -> Confirmation:
        command = ConfirmPayment(
            "order-1", "ann", Money("KRW", 1), key_of(), "c1", holder=self.holder
        )
        async with self.database.begin() as connection:
            (claimed,) = await self.decide(connection, [command], wait_for_locks=False)
        assert isinstance(claimed, Open)
        return claimed.confirmation

    async def free(self, claim: Confirmation) -> None:
        command = Settle(
            claim.payment.payment_id,
            "ann",
            "c1",
            NotSent("no connection"),
            self.holder,
            timedelta(0),
        )
        async with self.database.begin() as connection:
            await self.decide(connection, [command], wait_for_locks=False)

    async def left(self) -> int:
        async with self.database.reads.connect() as connection:
            return len((await connection.execute(sa.select(payments))).all())


@pytest.fixture
async def freeing(database: ServiceUrls) -> AsyncIterator[Freeing]:
    made = Freeing(database)
    yield made
    await made.database.close()


@pytest.fixture
def taken_up(freeing: Freeing, monkeypatch: pytest.MonkeyPatch) -> list[Confirmation]:
    """What another replica takes up between the freeing one's read and its write."""
    taken: list[Confirmation] = []
    load = store.load

    async def load_then_taken(*args: Any, **kwargs: Any) -> store.Loaded:
        loaded = await load(*args, **kwargs)
        if kwargs["ids"]:
            async with freeing.database.begin() as other:
                lease = timedelta(seconds=60)
                taken.extend(await store.take(other, holder=new_id(), lease=lease, size=10))
        return loaded

    monkeypatch.setattr(store, "load", load_then_taken)
    return taken


def without_row_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rows, read instead of locked."""
    columns = payments.c
    identity = {
        "found_id": columns.payment_id,
        "found_key": columns.payment_key,
        "found_user": columns.user_id,
        "found_request": columns.request_id,
    }
    read = sa.select(
        sa.func.clock_timestamp().label("now"),
        payments,
        *(column.label(name) for name, column in identity.items()),
    ).where(columns.payment_id == sa.func.any(_ids("id_payment_id")))
    monkeypatch.setattr(writes, "_LOCK_FREE", read)


def _ids(parameter: str) -> sa.BindParameter[Any]:
    return sa.bindparam(parameter, type_=ARRAY(sa.UUID(as_uuid=False)))


async def test_a_key_is_freed_only_while_nobody_takes_the_payment_up(
    freeing: Freeing, taken_up: list[Confirmation]
) -> None:
    await freeing.free(await freeing.claim())
    assert not taken_up  # its row was locked
    assert await freeing.left() == 0


async def test_the_conditional_delete_alone_is_enough(
    freeing: Freeing, taken_up: list[Confirmation], monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = await freeing.claim()
    without_row_locks(monkeypatch)
    with pytest.raises(StaleRead):
        await freeing.free(claim)
    assert len(taken_up) == 1
    await freeing.free(claim)
    assert await freeing.left() == 1


async def test_control_without_lock_and_condition_a_key_in_use_is_freed(
    freeing: Freeing, taken_up: list[Confirmation], monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = await freeing.claim()
    without_row_locks(monkeypatch)
    named = payments.c.payment_id == sa.func.any(_ids("freed_payment_id"))
    blind = sa.delete(payments).where(named)
    monkeypatch.setattr(writes, "_FREE", blind.returning(payments.c.payment_id))
    await freeing.free(claim)
    # Somebody is about to charge a key that is on record no more.
    assert len(taken_up) == 1
    assert await freeing.left() == 0
