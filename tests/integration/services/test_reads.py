"""Single reads of every service, loaded together: fresh, and each caller has its own outcome."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
import pytest

from common.batching.loader import IN_FLIGHT_MAX, BatchLoader
from common.db.repeat import read as read_once
from tally.balance.v1 import balance_pb2
from tally.coupon.v1 import coupon_pb2
from tally.order.v1 import order_pb2
from tally.payment.v1 import payment_pb2
from tests.support.balances import balance_of, charge
from tests.support.coupons import get_campaign, get_coupon, issue, open_campaign, redeem
from tests.support.orders import UNKNOWN_ID, cancel, fresh, restock, set_item
from tests.support.payments import cancel as cancel_payment
from tests.support.payments import confirm
from tests.support.refusals import outcome
from tests.support.stack import Stack, no_faults, stack, stack_databases, stack_options
from tests.support.tickets import lane_on, tickets_of
from tests.support.time_limits import LONG_S

__all__ = ["no_faults", "stack", "stack_databases", "stack_options"]

pytestmark = pytest.mark.asyncio(loop_scope="module")

CALLS: Final = 40


@pytest.fixture(scope="module")
def redis_url() -> str:
    """Reads use no Redis."""
    return ""


@dataclass(frozen=True)
class Read:
    """One kind of read: how to call it, and a change that it has to show."""

    call: Callable[[], Awaitable[Any]]
    change: Callable[[], Awaitable[Any]]


async def balance(stack: Stack) -> Read:
    user = await stack.user(100)
    return Read(
        lambda: stack.balance.GetBalance(balance_of(user)),
        lambda: stack.balance.ChargeBalance(charge(user, 1, fresh())),
    )


async def past_balance(stack: Stack) -> Read:
    user = fresh("user")
    charged = await stack.balance.ChargeBalance(charge(user, 100, fresh()))
    asked = balance_pb2.GetBalanceRequest(
        user_id=user, currency_code="KRW", at_time=charged.entry.create_time
    )

    async def change() -> None:
        """An entry at the time that is asked about."""
        await stack.databases.sql(
            "balance",
            "INSERT INTO ledger_entries SELECT user_id, currency_code, 2, gen_random_uuid(), kind,"
            " 1, 101, 'late', NULL, NULL, create_time FROM ledger_entries"
            f" WHERE user_id = '{user}'; UPDATE accounts SET version = 2 WHERE user_id = '{user}'",
        )

    return Read(lambda: stack.balance.GetBalance(asked), change)


async def campaign(stack: Stack) -> Read:
    campaign_id = await open_campaign(stack.coupon, fresh())
    return Read(
        lambda: stack.coupon.GetCampaign(get_campaign(campaign_id)),
        lambda: stack.coupon.IssueCoupon(issue(campaign_id, fresh())),
    )


async def coupon(stack: Stack) -> Read:
    user = fresh("user")
    coupon_id = await stack.coupon_of(user)
    return Read(
        lambda: stack.coupon.GetCoupon(get_coupon(coupon_id, user)),
        lambda: stack.coupon.RedeemCoupon(redeem(coupon_id, user, fresh())),
    )


async def ticket(stack: Stack) -> Read:
    user, campaign_id = fresh("user"), await open_campaign(stack.coupon, fresh())
    issuing = tickets_of(campaign_id, [user])
    async with lane_on(stack.databases.urls["coupon"].runtime) as lane:
        decided: Any = await lane.submit(issuing)
    coupon_id = decided[0].outcome.coupon_id
    asked = coupon_pb2.GetTicketRequest(ticket_id=issuing.tickets[0].ticket_id, user_id=user)
    return Read(
        lambda: stack.coupon.GetTicket(asked),
        lambda: stack.coupon.RedeemCoupon(redeem(coupon_id, user, fresh())),
    )


async def product(stack: Stack) -> Read:
    product_id = await stack.shop.product(1)
    asked = order_pb2.GetProductRequest(product_id=product_id)
    return Read(
        lambda: stack.shop.products.GetProduct(asked),
        lambda: stack.shop.products.RestockProduct(restock(product_id, 1, fresh())),
    )


async def cart(stack: Stack) -> Read:
    user, product_id = fresh("user"), await stack.shop.product(1)
    asked = order_pb2.GetCartRequest(user_id=user)
    return Read(
        lambda: stack.shop.carts.GetCart(asked),
        lambda: stack.shop.carts.SetCartItem(set_item(user, product_id, 1)),
    )


async def order(stack: Stack) -> Read:
    made = await stack.order(fresh("user"))
    asked = order_pb2.GetOrderRequest(order_id=made.order_id, user_id=made.user_id)
    return Read(
        lambda: stack.shop.orders.GetOrder(asked),
        lambda: stack.cancel(cancel(made, fresh())),
    )


async def payment(stack: Stack) -> Read:
    request_id = fresh()
    paid = (await stack.payment.ConfirmPayment(confirm(fresh("key"), request_id))).payment
    asked = payment_pb2.GetPaymentRequest(payment_id=paid.payment_id, user_id=paid.user_id)
    return Read(
        lambda: stack.payment.GetPayment(asked),
        lambda: stack.payment.CancelPayment(cancel_payment(request_id, fresh())),
    )


each_kind = pytest.mark.parametrize(
    "kind", [balance, past_balance, campaign, coupon, ticket, product, cart, order, payment]
)


@dataclass
class Held:
    """Statements of loaders, of which the first few keep their results until ``open``."""

    places: int
    open: asyncio.Event = field(default_factory=asyncio.Event)
    statements: int = 0
    calls: int = 0
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def note(self, *, statements: int = 0, calls: int = 0) -> None:
        self.statements += statements
        self.calls += calls
        self._changed.set()

    async def until(self, reached: Callable[[Held], bool]) -> None:
        async with asyncio.timeout(LONG_S):
            while not reached(self):
                self._changed.clear()
                await self._changed.wait()


@asynccontextmanager
async def held_statements(places: int) -> AsyncIterator[Held]:
    held = Held(places)
    load = BatchLoader.load

    async def executed(*given: Any) -> Any:
        values = await read_once(*given)
        held.note(statements=1)
        if held.statements <= held.places:
            await held.open.wait()
        return values

    async def counted(loader: Any, key: Any) -> Any:
        held.note(calls=1)
        return await load(loader, key)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("common.batching.loader.read", executed)
        patch.setattr(BatchLoader, "load", counted)
        try:
            yield held
        finally:
            held.open.set()


@pytest.fixture
def joining() -> Iterator[None]:
    """Without the guard: callers of one key join a statement that was sent."""
    load = BatchLoader.load
    sent: dict[tuple[int, Any], asyncio.Future[Any]] = {}

    async def join(loader: Any, key: Any) -> Any:
        if (loader.name, key) not in sent:
            sent[loader.name, key] = asyncio.ensure_future(load(loader, key))
        return await asyncio.shield(sent[loader.name, key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BatchLoader, "load", join)
        yield


async def before_and_after(read: Read) -> tuple[Any, Any]:
    """A read whose statement is on its way, and one begun after a change was committed."""
    async with held_statements(1) as held:
        before = asyncio.ensure_future(read.call())
        await held.until(lambda held: held.statements == 1)
        await read.change()
        after = asyncio.ensure_future(read.call())
        await held.until(lambda held: held.calls >= 2)
        await asyncio.sleep(0)
        held.open.set()
        return await before, await after


@each_kind
async def test_a_read_shows_what_was_committed_before_it(
    stack: Stack, kind: Callable[[Stack], Awaitable[Read]]
) -> None:
    read = await kind(stack)
    before, after = await before_and_after(read)
    assert before != after
    assert after == await read.call()


@pytest.mark.usefixtures("joining")
@each_kind
async def test_control_a_read_that_joins_a_sent_statement_is_stale(
    stack: Stack, kind: Callable[[Stack], Awaitable[Read]]
) -> None:
    before, after = await before_and_after(await kind(stack))
    assert before == after


@each_kind
async def test_concurrent_reads_share_a_statement(
    stack: Stack, kind: Callable[[Stack], Awaitable[Read]]
) -> None:
    read = await kind(stack)
    expected = await read.call()
    async with held_statements(IN_FLIGHT_MAX) as held:
        calls = []
        for _ in range(CALLS):
            calls.append(asyncio.ensure_future(read.call()))
            await held.until(lambda held: held.calls == len(calls))
        await held.until(lambda held: held.statements == IN_FLIGHT_MAX)
        hung_up = calls[-1]
        hung_up.cancel()
        held.open.set()
        got = await asyncio.gather(*calls, return_exceptions=True)
    assert got[:-1] == [expected] * (CALLS - 1)
    assert hung_up.cancelled()
    assert held.statements == IN_FLIGHT_MAX + 1


async def test_each_of_many_reads_has_its_own_end(stack: Stack) -> None:
    """Orders that exist, one of another user, one that does not, and one that cannot be read."""
    mine, theirs, broken = [await stack.order(user) for user in ("ann", "bob", "ann")]
    await stack.databases.sql(
        "order",
        "ALTER TABLE orders DROP CONSTRAINT orders_state;"
        f"UPDATE orders SET state = 'UNHEARD_OF' WHERE order_id = '{broken.order_id}'",
    )

    def get(order_id: str) -> Awaitable[Any]:
        asked = order_pb2.GetOrderRequest(order_id=order_id, user_id="ann")
        return outcome(stack.shop.orders.GetOrder(asked))

    ids = (mine.order_id, theirs.order_id, UNKNOWN_ID, broken.order_id, mine.order_id, "no id")
    async with held_statements(IN_FLIGHT_MAX) as held:
        first = [asyncio.ensure_future(get(mine.order_id)) for _ in range(IN_FLIGHT_MAX)]
        await held.until(lambda held: held.statements >= 1)
        together = [asyncio.ensure_future(get(order_id)) for order_id in ids]
        await held.until(lambda held: held.calls == len(first) + len(ids) - 1)
        held.open.set()
        got = await asyncio.gather(*together)
        await asyncio.gather(*first)
    assert [answer if isinstance(answer, str) else answer.order for answer in got] == [
        *(mine, "ORDER_NOT_FOUND", "ORDER_NOT_FOUND", "INTERNAL", mine, "ORDER_NOT_FOUND")
    ]
    assert held.statements <= IN_FLIGHT_MAX + 1


async def test_a_read_past_its_deadline_leaves_the_others(stack: Stack) -> None:
    made = await stack.order(fresh("user"))
    asked = order_pb2.GetOrderRequest(order_id=made.order_id, user_id=made.user_id)
    async with held_statements(1) as held:
        patient = asyncio.ensure_future(stack.shop.orders.GetOrder(asked))
        await held.until(lambda held: held.statements == 1)
        held.places = 2
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await stack.shop.orders.GetOrder(asked, timeout=0.2)
        assert ended.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        held.open.set()
        assert (await patient).order == made
