"""What the client does around a call: request_ids, deadlines, repetitions."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from common.errors import (
    Code,
    ConflictRetriesExhausted,
    Overloaded,
    Refusal,
    RemoteRefusal,
    RequestInProgress,
)
from common.ids import is_id
from tally.balance.v1 import balance_pb2
from tally.order.v1 import order_pb2
from tally.type.v1.money_pb2 import Money
from tally_client import (
    CartChanged,
    DatabaseUnavailable,
    DeadlineExceeded,
    InsufficientFunds,
    NoAnswer,
    Tally,
    TallyError,
)
from tally_client import Overloaded as OverloadedError
from tests.integration.client.answering import Received, Wire, answering, failing

BALANCE = balance_pb2.DESCRIPTOR.services_by_name["BalanceService"].methods_by_name
CART = order_pb2.DESCRIPTOR.services_by_name["CartService"].methods_by_name
DEDUCT = BALANCE["DeductBalance"]
DEDUCTED = balance_pb2.DeductBalanceResponse(replayed=True)
LIMIT_S = 30.0


def deduct(request_id: str = "") -> balance_pb2.DeductBalanceRequest:
    return balance_pb2.DeductBalanceRequest(
        user_id="ada", amount=Money(currency_code="KRW", amount_minor=1), request_id=request_id
    )


def set_item() -> order_pb2.SetCartItemRequest:
    return order_pb2.SetCartItemRequest(user_id="ada", product_id="mug", quantity=1)


class Busy(Overloaded):
    """As OVERLOADED, for a shorter while."""

    retry_after_s = 0.01


class StillRunning(RequestInProgress):
    """As REQUEST_IN_PROGRESS, for a shorter while."""

    retry_after_s = 0.01


class Crowded(ConflictRetriesExhausted):
    """As CONFLICT_RETRIES_EXHAUSTED, for a shorter while."""

    retry_after_s = 0.01


def gone() -> Refusal:
    return RemoteRefusal(Code.UNAVAILABLE, "DATABASE_UNAVAILABLE", "Gone.", {}, retry_after_s=0.01)


async def never(_: Any) -> Any:
    await asyncio.Event().wait()


async def test_a_request_id_is_made_and_kept_over_all_repetitions() -> None:
    received = Received()
    ends = iter([Busy(), gone(), StillRunning(), gone(), Crowded()])

    async def answer(_: Any) -> Any:
        end = next(ends, None)
        if end is not None:
            raise end
        return DEDUCTED

    request = deduct()
    async with answering(received, (DEDUCT, answer)) as address, Tally(balance=address) as tally:
        assert await tally.balance.deduct_balance(request, timeout_s=LIMIT_S) == DEDUCTED
        first = {sent.request_id for sent in received.requests["DeductBalance"]}
        await tally.balance.deduct_balance(request)
        [*_, second] = received.requests["DeductBalance"]
    assert received.attempts["DeductBalance"] == 7
    assert len(first) == 1
    assert is_id(*first)
    assert second.request_id not in first, "another call is another intent"
    assert request == deduct(), "the caller's request is left as it was"


async def test_a_callers_own_request_id_is_sent_and_told() -> None:
    received = Received()
    refusal = RemoteRefusal(Code.FAILED_PRECONDITION, "INSUFFICIENT_FUNDS", "Too little.", {})
    async with (
        answering(received, (DEDUCT, failing(1, lambda: refusal, DEDUCTED))) as address,
        Tally(balance=address) as tally,
    ):
        with pytest.raises(InsufficientFunds) as caught:
            await tally.balance.deduct_balance(deduct("mine"))
    assert caught.value.request_id == "mine"
    assert caught.value.method == "/tally.balance.v1.BalanceService/DeductBalance"
    assert [sent.request_id for sent in received.requests["DeductBalance"]] == ["mine"]


async def test_what_the_channel_repeated_is_not_repeated_again() -> None:
    received = Received()
    async with (
        answering(received, (DEDUCT, failing(100, gone, DEDUCTED))) as address,
        Tally(balance=address) as tally,
    ):
        with pytest.raises(DatabaseUnavailable) as caught:
            await tally.balance.deduct_balance(deduct(), timeout_s=LIMIT_S)
    assert received.attempts["DeductBalance"] == 5
    assert caught.value.may_repeat


async def test_a_refusal_that_says_when_is_repeated_even_where_a_lost_answer_is_not() -> None:
    received = Received()
    answer = failing(2, Busy, order_pb2.SetCartItemResponse())
    told: list[TallyError] = []
    async with (
        answering(received, (CART["SetCartItem"], answer)) as address,
        Tally(order=address, on_repeat=told.append) as tally,
    ):
        await tally.cart.set_cart_item(set_item(), timeout_s=LIMIT_S)
    assert received.attempts["SetCartItem"] == 3
    assert [type(error) for error in told] == [OverloadedError] * 2


async def test_a_refusal_without_retry_info_is_final() -> None:
    received = Received()
    refusal = RemoteRefusal(Code.ABORTED, "CART_CHANGED", "Changed.", {})
    answer = failing(1, lambda: refusal, order_pb2.SetCartItemResponse())
    async with (
        answering(received, (CART["SetCartItem"], answer)) as address,
        Tally(order=address) as tally,
    ):
        with pytest.raises(CartChanged) as caught:
            await tally.cart.set_cart_item(set_item())
    assert received.attempts["SetCartItem"] == 1
    assert not caught.value.may_repeat


async def test_a_wait_that_outlasts_the_deadline_is_not_begun() -> None:
    received = Received()
    late = RemoteRefusal(Code.RESOURCE_EXHAUSTED, "OVERLOADED", "Later.", {}, retry_after_s=3600.0)
    async with (
        answering(received, (DEDUCT, failing(1, lambda: late, DEDUCTED))) as address,
        Tally(balance=address) as tally,
    ):
        with pytest.raises(OverloadedError) as caught:
            await tally.balance.deduct_balance(deduct())
    assert caught.value.retry_after_s == 3600.0


async def test_the_deadline_is_the_methods_unless_the_caller_has_another() -> None:
    received = Received()
    answer = failing(0, Busy, DEDUCTED)
    async with answering(received, (DEDUCT, answer)) as address, Tally(balance=address) as tally:
        await tally.balance.deduct_balance(deduct())
        await tally.balance.deduct_balance(deduct(), timeout_s=2.0)
        await tally.balance.deduct_balance(deduct(), timeout_s=600.0)
    default, shorter, longer = received.left_s["DeductBalance"]
    assert default is not None
    assert shorter is not None
    assert longer is not None
    # gRPC rounds up a little on the way.
    assert default <= 11.0
    assert shorter <= 3.0
    assert longer > 60.0


async def test_after_a_timeout_the_same_call_can_be_made_again() -> None:
    received = Received()
    slow = True

    async def answer(_: Any) -> Any:
        return await never(_) if slow else DEDUCTED

    async with (
        answering(received, (DEDUCT, answer)) as address,
        Tally(balance=address) as tally,
    ):
        request = deduct()
        with pytest.raises(DeadlineExceeded) as caught:
            await tally.balance.deduct_balance(request, timeout_s=0.5)
        assert caught.value.may_repeat
        slow = False
        request.request_id = caught.value.request_id
        await tally.balance.deduct_balance(request)
    ids = {sent.request_id for sent in received.requests["DeductBalance"]}
    assert ids == {caught.value.request_id}


@pytest.mark.parametrize("repeatable", [True, False])
async def test_nobody_there_is_no_answer(repeatable: bool) -> None:
    received = Received()
    async with answering(received, (DEDUCT, never)) as address, Wire.to(address) as wire:
        gone_address = wire.address
    async with Tally(balance=gone_address, order=gone_address) as tally:
        with pytest.raises(NoAnswer) as caught:
            if repeatable:
                await tally.balance.deduct_balance(deduct(), timeout_s=LIMIT_S)
            else:
                await tally.cart.set_cart_item(set_item(), timeout_s=LIMIT_S)
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.UNAVAILABLE, "")
    assert caught.value.may_repeat is repeatable
    assert is_id(caught.value.request_id) is repeatable


async def test_a_call_under_way_when_the_client_is_closed_ends_as_a_call_that_got_no_answer() -> (
    None
):
    received = Received()
    arrived = asyncio.Event()

    async def answer(_: Any) -> Any:
        arrived.set()
        await asyncio.Event().wait()

    async with answering(received, (DEDUCT, answer)) as address, Tally(balance=address) as tally:
        calling = asyncio.create_task(tally.balance.deduct_balance(deduct()))
        await asyncio.wait_for(arrived.wait(), LIMIT_S)
        await tally.close()
        # Not a CancelledError, which nobody asked for and "except Exception" would not catch.
        with pytest.raises(NoAnswer) as caught:
            await asyncio.wait_for(calling, LIMIT_S)
    assert caught.value.code is grpc.StatusCode.CANCELLED
    assert caught.value.may_repeat
    assert is_id(caught.value.request_id)


async def test_a_call_that_waits_to_be_repeated_when_the_client_is_closed_ends_as_refused() -> None:
    received = Received()
    refused = asyncio.Event()
    later = RemoteRefusal(Code.RESOURCE_EXHAUSTED, "OVERLOADED", "Later.", {}, retry_after_s=0.5)
    async with (
        answering(received, (DEDUCT, failing(1, lambda: later, DEDUCTED))) as address,
        Tally(balance=address, on_repeat=lambda _: refused.set()) as tally,
    ):
        calling = asyncio.create_task(tally.balance.deduct_balance(deduct()))
        await asyncio.wait_for(refused.wait(), LIMIT_S)
        await tally.close()
        with pytest.raises(OverloadedError):
            await asyncio.wait_for(calling, LIMIT_S)
    assert received.attempts["DeductBalance"] == 1


async def test_whoever_cancels_a_call_is_obeyed_though_the_client_is_closing() -> None:
    received = Received()
    arrived = asyncio.Event()

    async def answer(_: Any) -> Any:
        arrived.set()
        await asyncio.Event().wait()

    async with answering(received, (DEDUCT, answer)) as address, Tally(balance=address) as tally:
        calling = asyncio.create_task(tally.balance.deduct_balance(deduct()))
        await asyncio.wait_for(arrived.wait(), LIMIT_S)
        calling.cancel()
        await tally.close()
        with pytest.raises(asyncio.CancelledError):
            await calling


async def test_lists_are_read_page_by_page() -> None:
    received = Received()
    tokens = iter(["second", "third", ""])

    async def answer(_: Any) -> Any:
        return balance_pb2.ListLedgerEntriesResponse(next_page_token=next(tokens))

    request = balance_pb2.ListLedgerEntriesRequest(user_id="ada", currency_code="KRW", page_size=7)
    method = BALANCE["ListLedgerEntries"]
    async with answering(received, (method, answer)) as address, Tally(balance=address) as tally:
        pages = [page async for page in tally.balance.list_ledger_entries.pages(request)]
    assert len(pages) == 3
    asked = received.requests["ListLedgerEntries"]
    assert [sent.page_token for sent in asked] == ["", "second", "third"]
    assert {(sent.user_id, sent.page_size) for sent in asked} == {("ada", 7)}
    assert request.page_token == ""


async def test_a_client_works_in_its_own_loop_only() -> None:
    async with Tally(order="127.0.0.1:1") as tally:

        def elsewhere() -> None:
            asyncio.run(tally.cart.set_cart_item(set_item()))

        with pytest.raises(RuntimeError, match="event loop"):
            await asyncio.to_thread(elsewhere)
