"""Takeovers of sagas in PostgreSQL: which, when, how many, and by one replica."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from structlog.testing import capture_logs

from order_service.model.saga import Saga, SagaState
from order_service.model.saga_input import SagaInput
from order_service.saga.journal import SagaJournal
from order_service.saga.plan import CANCEL_ORDER, PAY_ORDER, Plan
from order_service.tables import sagas as table
from tests.support.saga_rows import LEASE_S, Sagas, begin, taken_over
from tests.support.sagas import CANCEL_INPUT, pay_input


async def test_a_waiting_saga_is_not_taken_over_before_its_time(sagas: Sagas) -> None:
    saga = await sagas.add()
    saga.wait("UNAVAILABLE")
    await sagas.one.write(saga, lease_s=LEASE_S)
    assert await taken_over(sagas.one) == []
    saga.flag()
    await sagas.one.write(saga, lease_s=0)
    (taken,) = await taken_over(sagas.one)
    assert taken.state is SagaState.NEEDS_ATTENTION, "a person should look, and it goes on"


async def waiting_for(sagas: Sagas, *names: str, lease_s: float = 0) -> Saga:
    """A saga that waits in its row."""
    saga = await sagas.add()
    now = datetime.now(UTC)
    begin(saga, 0).postpone("UNAVAILABLE", now, now + timedelta(hours=1), "")
    saga.wait("UNAVAILABLE", names)
    await sagas.one.write(saga, lease_s=lease_s)
    return saga


async def test_of_the_sagas_that_wait_for_a_service_that_is_away_one_goes_on(sagas: Sagas) -> None:
    away = [await waiting_for(sagas, "coupon") for _ in range(3)]
    others = [
        await waiting_for(sagas, *names) for names in (("balance",), ("balance", "coupon"), ())
    ]
    taken = {saga.saga_id for saga in await taken_over(sagas.one, away=["coupon"])}
    probes = taken - {saga.saga_id for saga in others}
    assert len(taken) == 4
    assert len(probes) == 1
    assert probes < {saga.saga_id for saga in away}


async def test_sagas_that_wait_for_a_payment_are_read_in_order_and_woken(sagas: Sagas) -> None:
    waits = (("gateway",), ("payment",), ("balance", "gateway"))
    waiting = [await waiting_for(sagas, *names, lease_s=LEASE_S) for names in waits]
    await waiting_for(sagas, "balance", lease_s=LEASE_S)
    ids = sorted(saga.saga_id for saga in waiting)
    first = await sagas.one.read_waiting(after="", size=2)
    assert ([saga.saga_id for saga in first.sagas], first.after) == (ids[:2], ids[1])
    rest = await sagas.one.read_waiting(after=ids[1], size=2)
    assert ([saga.saga_id for saga in rest.sagas], rest.after) == (ids[2:], "")
    await waiting_for(sagas, "balance")
    assert await sagas.one.wake(ids[:1]) == 1
    (taken,) = await taken_over(sagas.two, retries=1)
    assert (taken.saga_id, taken.attempts) == (ids[0], 1), "it is the first of the retries"
    assert [step.next_attempt_time for step in taken.steps] == [None] * len(taken.steps)
    assert [step.name for step in taken.steps] == [step.name for step in waiting[0].steps]
    assert await sagas.one.wake(ids[:1]) == 0, "a replica runs it"


async def test_a_row_that_cannot_be_read_does_not_stop_the_poll(sagas: Sagas) -> None:
    """Nor hide what stands behind it: a page with such a row is not the last one."""
    broken, good = [await waiting_for(sagas, "gateway", lease_s=LEASE_S) for _ in range(2)]
    async with sagas.database.begin() as connection:
        await connection.execute(
            sa.update(table).values(asked="[]").where(table.c.saga_id == broken.saga_id)
        )
    page = await sagas.one.read_waiting(after="", size=2)
    assert [saga.saga_id for saga in page.sagas] == [good.saga_id]
    assert page.after == max(broken.saga_id, good.saga_id)


async def test_a_dead_replicas_saga_comes_before_retries_although_it_had_failed(
    sagas: Sagas,
) -> None:
    waiting = await waiting_for(sagas)
    saga = await sagas.add(lease_s=0)
    saga.attempts = 3
    await sagas.one.write(saga, lease_s=0)
    (taken,) = await taken_over(sagas.two, capacity=1)
    assert taken.saga_id == saga.saga_id
    (taken,) = await taken_over(sagas.two, capacity=1)
    assert taken.saga_id == waiting.saga_id


async def test_a_saga_of_an_unknown_plan_is_not_taken_over(sagas: Sagas) -> None:
    known = await sagas.add(lease_s=0)
    later = await sagas.add(lease_s=0, plan_version=PAY_ORDER.version + 1)
    assert [saga.saga_id for saga in await taken_over(sagas.one)] == [known.saga_id]
    left = await sagas.read(later)
    assert (left.epoch, left.attempts) == (1, 0)


@pytest.mark.parametrize(
    ("plan", "asked"),
    [
        (PAY_ORDER, pay_input()),
        (PAY_ORDER, pay_input(payment_key=None, balance_minor=None)),
        (CANCEL_ORDER, CANCEL_INPUT),
        (CANCEL_ORDER, replace(CANCEL_INPUT, gateway_minor=0)),
    ],
    ids=["pay by gateway", "pay", "cancel at gateway", "cancel"],
)
async def test_a_takeover_is_of_one_bulkhead(sagas: Sagas, plan: Plan, asked: SagaInput) -> None:
    saga = await sagas.add(plan, asked, lease_s=0)
    assert await taken_over(sagas.one, uses_gateway=not asked.uses_gateway) == []
    assert [
        each.saga_id for each in await taken_over(sagas.one, uses_gateway=asked.uses_gateway)
    ] == [saga.saga_id]


async def test_sagas_that_failed_before_come_last_and_are_limited(sagas: Sagas) -> None:
    failed = [await sagas.add(lease_s=0) for _ in range(3)]
    for saga in failed:
        saga.wait("UNAVAILABLE")
        await sagas.one.write(saga, lease_s=0)
    left = await sagas.add(lease_s=0)
    assert [saga.saga_id for saga in await taken_over(sagas.one, capacity=1, retries=1)] == [
        left.saga_id
    ]
    again = {saga.saga_id for _ in range(2) for saga in await taken_over(sagas.one, retries=1)}
    assert len(again) == 2
    assert again < {saga.saga_id for saga in failed}
    assert await taken_over(sagas.one, retries=-1) == []


async def take_over_all(sagas: Sagas) -> list[str]:
    """A sweep of both bulkheads: an unreadable saga may look as if it were of either."""
    return [
        saga.saga_id
        for uses_gateway in (False, True)
        for saga in await taken_over(sagas.one, uses_gateway=uses_gateway)
    ]


@pytest.mark.parametrize(
    "damage",
    [
        "asked = asked - 'subtotal_minor'",
        """asked = '{"gateway_minor": "x"}'""",
        "asked = '[]'",
        "steps = '{}'",
        "facts = 'null'",
    ],
)
async def test_an_unreadable_row_stops_no_other(sagas: Sagas, damage: str) -> None:
    broken, sound = await sagas.add(lease_s=0), await sagas.add(lease_s=0)
    this_row = table.c.saga_id == broken.saga_id
    async with sagas.database.begin() as connection:
        await connection.execute(
            sa.text(f"UPDATE sagas SET {damage} WHERE saga_id = :id"), {"id": broken.saga_id}
        )
    # The log event is not rendered: on a slow machine that outlasts the transaction's time limit.
    with capture_logs() as logged:
        assert await take_over_all(sagas) == [sound.saga_id]
        paused = []
        left = sa.cast(table.c.lease_until - sa.func.clock_timestamp(), sa.Interval)
        for _ in range(6):
            async with sagas.database.reads.connect() as connection:
                wanted = sa.select(table.c.state, table.c.owner, left.label("left"))
                row = (await connection.execute(wanted.where(this_row))).one()
            assert (row.state, row.owner) == ("RUNNING", None)
            paused.append(math.ceil(row.left.total_seconds()))
            async with sagas.database.begin() as connection:
                due = sa.update(table).values(lease_until=sa.func.now()).where(this_row)
                await connection.execute(due)
            assert await take_over_all(sagas) == []
    assert paused == [60, 120, 240, 480, 600, 600], "twice as long each time, up to a limit"
    assert [line["id"] for line in logged if line["event"] == "row_not_readable"] == [
        broken.saga_id
    ]


@pytest.mark.parametrize(
    ("cause", "expired"),
    [("died", 1), ("waited", 0), ("gave it up", 0)],
)
async def test_a_takeover_is_for_an_expired_lease_or_since_it_is_due(
    sagas: Sagas, cause: str, expired: int
) -> None:
    if cause == "waited":
        await waiting_for(sagas, "coupon")
    else:
        saga = await sagas.add(lease_s=0 if cause == "died" else LEASE_S)
        if cause == "gave it up":
            await sagas.one.renew(saga, lease_s=0)
    taken = await sagas.two.take_over(
        lease_s=LEASE_S, uses_gateway=True, capacity=1, retries=1, away=()
    )
    assert (len(taken.sagas), taken.expired) == (1, expired)


async def test_of_many_replicas_one_takes_a_saga_over(sagas: Sagas) -> None:
    ids = [(await sagas.add(lease_s=0)).saga_id for _ in range(200)]

    async def sweep(journal: SagaJournal) -> list[str]:
        taken: list[str] = []
        while found := await taken_over(journal, capacity=7):
            taken += [saga.saga_id for saga in found]
        return taken

    taken = await asyncio.gather(
        *(sweep(sagas.journal(f"replica-{number}")) for number in range(8))
    )
    assert Counter(saga_id for each in taken for saga_id in each) == dict.fromkeys(ids, 1)


async def test_control_a_read_before_the_write_takes_one_over_twice(sagas: Sagas) -> None:
    saga = await sagas.add(lease_s=0)
    both_read = asyncio.Barrier(2)
    due = sa.text("SELECT saga_id FROM sagas WHERE lease_until < now()")
    take = sa.text("UPDATE sagas SET epoch = epoch + 1 WHERE saga_id = :id")

    async def naive() -> int:
        async with sagas.database.begin() as connection:
            found = (await connection.execute(due)).scalars()
            await both_read.wait()
            for saga_id in found:
                await connection.execute(take, {"id": saga_id})
        return len(found)

    assert list(await asyncio.gather(naive(), naive())) == [1, 1]
    assert (await sagas.read(saga)).epoch == 3
