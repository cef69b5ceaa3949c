"""The database's clock is set: what docs/decisions/0010-clocks.md says of it, on real services."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
import pytest_asyncio

from deploy.local.plan import PROJECT
from tally.order.v1 import order_pb2 as pb
from tests.support.balances import charge
from tests.support.coupons import campaign, issue
from tests.support.databases import Databases, StackDatabases, name_of
from tests.support.orders import cancel, fresh, pay
from tests.support.refusals import outcome, refused
from tests.support.stack import ALL_TAKEN, Stack, no_faults, stack

__all__ = ["no_faults", "stack"]
pytestmark = pytest.mark.asyncio(loop_scope="module")

PAGE = PROJECT / "docs" / "decisions" / "0010-clocks.md"
# Found before PostgreSQL's own: each session has this search_path.
CLOCK = """
CREATE SCHEMA clock;
CREATE TABLE clock.step (step interval NOT NULL);
INSERT INTO clock.step VALUES ('0');
CREATE FUNCTION clock.now() RETURNS timestamptz STABLE LANGUAGE sql
    AS 'SELECT pg_catalog.now() + step FROM clock.step';
CREATE FUNCTION clock.clock_timestamp() RETURNS timestamptz VOLATILE LANGUAGE sql
    AS 'SELECT pg_catalog.clock_timestamp() + step FROM clock.step';
GRANT USAGE ON SCHEMA clock TO PUBLIC;
GRANT SELECT ON clock.step TO PUBLIC;
"""
SetClock = Callable[[str], Awaitable[None]]


@pytest.fixture(scope="module")
def redis_url() -> str:
    return ""


@pytest.fixture(scope="module")
def stack_options() -> dict[str, Any]:
    return {"saga_attention_s": 0.001, "expiry_interval_s": 0.05}


@pytest.fixture(scope="module")
def stack_databases(databases: Databases) -> Iterator[StackDatabases]:
    """Databases whose clock can be set."""
    with databases.clone_all() as cloned:
        for urls in cloned.urls.values():
            database = name_of(urls)
            path = f"ALTER DATABASE {database} SET search_path = clock, pg_catalog, public;"
            databases.server.run_sql(CLOCK + path, database=database)
        yield cloned


@pytest_asyncio.fixture(loop_scope="module")
async def set_clock(stack: Stack) -> AsyncIterator[SetClock]:
    """Sets the clocks of all databases, as an interval to the right time."""

    async def set_to(step: str) -> None:
        for service in stack.databases.urls:
            await stack.databases.sql(service, f"UPDATE clock.step SET step = '{step}'")

    await set_to("0")
    yield set_to
    await set_to("0")


@pytest.mark.parametrize("step", ["-1 hour", "1 hour"])
async def test_orders_are_paid_and_cancelled_by_any_clock(
    stack: Stack, set_clock: SetClock, step: str
) -> None:
    order, request = await stack.order_paid_by_all()
    if step.startswith("-"):
        await set_clock(step)
        paid = (await stack.pay(request)).order
    else:
        paid = (await stack.pay(request)).order
        await set_clock(step)
    assert await stack.taken(request) == ALL_TAKEN
    cancelled = (await stack.cancel(cancel(order, "x1"))).order
    assert cancelled.state == pb.Order.STATE_CANCELLED
    times = [each.update_time.ToNanoseconds() for each in (order, paid, cancelled)]
    assert times == sorted(times)
    charged = (await stack.balance.ChargeBalance(charge(request.user_id, 1, fresh()))).entry
    assert charged.create_time.ToNanoseconds() > 0
    assert charged.balance_after.amount_minor == 20_001


async def test_an_order_expires_by_the_clock_as_it_is(stack: Stack, set_clock: SetClock) -> None:
    ann = await stack.user(20_000)
    late, early = await stack.order(ann), await stack.order(ann)
    await set_clock("-1 hour")
    # It can be paid for an hour longer.
    assert (await stack.pay(pay(late))).order.state == pb.Order.STATE_PAID
    await set_clock("1 hour")
    expired = await stack.until(early, pb.Order.STATE_EXPIRED)
    await set_clock("0")
    with refused("ORDER_NOT_PAYABLE"):
        await stack.pay(pay(early))
    assert await stack.shop.get(early) == expired
    assert await stack.shop.stock(early.items[0].product_id) == (5, 0, 0)


@pytest.mark.parametrize(
    ("step", "ended"), [("-2 hours", True), ("2 hours", True), ("30 minutes", False)]
)
async def test_a_campaign_is_open_by_the_clock_as_it_is(
    stack: Stack, set_clock: SetClock, step: str, ended: bool
) -> None:
    """From an hour ago until in an hour."""
    made = (await stack.coupon.CreateCampaign(campaign(fresh()))).campaign
    await set_clock(step)
    issued = await outcome(stack.coupon.IssueCoupon(issue(made.campaign_id, fresh())))
    assert (issued == "CAMPAIGN_NOT_OPEN") is ended


async def test_what_waits_for_the_old_clock_is_released_by_the_documented_statements(
    stack: Stack, set_clock: SetClock
) -> None:
    order, request, _ = await stack.parked("confirm_payment")
    # Its next attempt was half an hour away by the old clock.
    await set_clock("-30 minutes")
    statements = re.findall(r"^-- (\w+)\n(UPDATE [^;]+;)", PAGE.read_text(), re.MULTILINE)
    assert [service for service, _ in statements] == ["order", "payment", "payment"]
    for service, statement in statements:
        await stack.databases.sql(service, statement)
    await stack.until(order, pb.Order.STATE_PAID)
    assert await stack.taken(request) == ALL_TAKEN
