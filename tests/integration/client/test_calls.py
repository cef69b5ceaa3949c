"""What the client adds to a call: request_ids, deadlines, pages, and an end when it is closed."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from common.ids import is_id
from tally.balance.v1 import balance_pb2
from tally_client import DeadlineExceeded, InsufficientFunds, NoAnswer, Overloaded, Tally
from tests.integration.client.messages import DEDUCTED, LIMIT_S, call, deduct, set_item
from tests.support.fake_server import HANG, TcpProxy, fake_tally, garbled_server, refusal


async def test_request_id_is_created_and_sent_with_every_attempt() -> None:
    outcomes = [
        refusal("RESOURCE_EXHAUSTED", "OVERLOADED"),
        refusal("UNAVAILABLE", "DATABASE_UNAVAILABLE"),
        refusal("ABORTED", "REQUEST_IN_PROGRESS"),
        refusal("UNAVAILABLE", "DATABASE_UNAVAILABLE"),
        refusal("ABORTED", "CONFLICT_RETRIES_EXHAUSTED"),
        DEDUCTED,
    ]
    request = deduct()
    async with fake_tally(DeductBalance=outcomes) as (tally, received):
        assert await tally.balance.deduct_balance(request, timeout_s=LIMIT_S) == DEDUCTED
        first = {sent.request_id for sent in received.requests["DeductBalance"]}
        await tally.balance.deduct_balance(request)
    assert received.attempts["DeductBalance"] == 7
    assert len(first) == 1
    assert is_id(*first)
    assert received.requests["DeductBalance"][-1].request_id not in first, "another call"
    assert request == deduct(), "the caller's request is not changed"


async def test_request_id_of_the_caller_is_sent_and_reported() -> None:
    poor = refusal("FAILED_PRECONDITION", "INSUFFICIENT_FUNDS", retry_after_s=None)
    async with fake_tally(DeductBalance=[poor]) as (tally, received):
        with pytest.raises(InsufficientFunds) as caught:
            await tally.balance.deduct_balance(deduct("mine"))
    assert caught.value.request_id == "mine"
    assert caught.value.method == "/tally.balance.v1.BalanceService/DeductBalance"
    assert [sent.request_id for sent in received.requests["DeductBalance"]] == ["mine"]


async def test_deadline_is_the_methods_unless_the_caller_sets_one() -> None:
    async with fake_tally(DeductBalance=[DEDUCTED]) as (tally, received):
        for timeout_s in (None, 2.0, 600.0):
            await tally.balance.deduct_balance(deduct(), timeout_s=timeout_s)
    default_s, shorter_s, longer_s = received.left_s["DeductBalance"]
    # gRPC rounds up a little on the way.
    assert default_s <= 11.0
    assert shorter_s <= 3.0
    assert longer_s > 60.0


async def test_call_after_a_timeout_can_be_made_again() -> None:
    request = deduct()
    async with fake_tally(DeductBalance=[HANG, DEDUCTED]) as (tally, received):
        with pytest.raises(DeadlineExceeded) as caught:
            await tally.balance.deduct_balance(request, timeout_s=2.0)
        assert caught.value.may_repeat
        request.request_id = caught.value.request_id
        await tally.balance.deduct_balance(request)
    ids = {sent.request_id for sent in received.requests["DeductBalance"]}
    assert ids == {caught.value.request_id}


@pytest.mark.parametrize("idempotent", [True, False])
async def test_no_answer_where_nothing_listens(idempotent: bool) -> None:
    async with TcpProxy.to("127.0.0.1:1") as proxy:
        closed_address = proxy.address
    async with Tally(balance=closed_address, order=closed_address) as tally:
        with pytest.raises(NoAnswer) as caught:
            await call(tally, idempotent=idempotent)
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.UNAVAILABLE, "")
    assert caught.value.may_repeat is idempotent
    assert is_id(caught.value.request_id) is idempotent


@pytest.mark.parametrize("idempotent", [True, False])
async def test_no_answer_where_the_response_cannot_be_read(idempotent: bool) -> None:
    """gRPC returns None for it, as if the call had succeeded."""
    async with garbled_server() as address, Tally(balance=address, order=address) as tally:
        with pytest.raises(NoAnswer) as caught:
            await call(tally, idempotent=idempotent)
        assert caught.value.may_repeat is idempotent
        assert is_id(caught.value.request_id) is idempotent


@pytest.mark.parametrize("cancelled", [False, True])
async def test_running_call_ends_when_the_client_is_closed(cancelled: bool) -> None:
    async with fake_tally(DeductBalance=[HANG]) as (tally, received):
        calling = asyncio.create_task(tally.balance.deduct_balance(deduct()))
        await asyncio.wait_for(received.arrived.wait(), LIMIT_S)
        if cancelled:
            calling.cancel()
        await tally.close()
        if cancelled:
            with pytest.raises(asyncio.CancelledError):
                await calling
            return
        # Nobody cancelled the task, and "except Exception" does not catch a CancelledError.
        with pytest.raises(NoAnswer) as caught:
            await asyncio.wait_for(calling, LIMIT_S)
    assert caught.value.code is grpc.StatusCode.CANCELLED
    assert caught.value.may_repeat
    assert is_id(caught.value.request_id)


async def test_call_between_attempts_ends_when_the_client_is_closed() -> None:
    refused = asyncio.Event()
    later = refusal("RESOURCE_EXHAUSTED", "OVERLOADED", retry_after_s=0.5)
    async with fake_tally(on_repeat=lambda _: refused.set(), DeductBalance=[later, DEDUCTED]) as (
        tally,
        received,
    ):
        calling = asyncio.create_task(tally.balance.deduct_balance(deduct()))
        await asyncio.wait_for(refused.wait(), LIMIT_S)
        await tally.close()
        with pytest.raises(Overloaded):
            await asyncio.wait_for(calling, LIMIT_S)
    assert received.attempts["DeductBalance"] == 1


async def test_pages_follow_the_page_tokens() -> None:
    answers = [
        balance_pb2.ListLedgerEntriesResponse(next_page_token=token)
        for token in ("second", "third", "")
    ]
    request = balance_pb2.ListLedgerEntriesRequest(user_id="ada", currency_code="KRW", page_size=7)
    async with fake_tally(ListLedgerEntries=answers) as (tally, received):
        assert [page async for page in tally.balance.list_ledger_entries.pages(request)] == answers
    sent = received.requests["ListLedgerEntries"]
    assert [each.page_token for each in sent] == ["", "second", "third"]
    assert {(each.user_id, each.page_size) for each in sent} == {("ada", 7)}
    assert request.page_token == ""


async def test_client_works_in_its_own_loop_only() -> None:
    async with Tally(order="127.0.0.1:1") as tally:

        def elsewhere() -> None:
            asyncio.run(tally.cart.set_cart_item(set_item()))

        with pytest.raises(RuntimeError, match="event loop"):
            await asyncio.to_thread(elsewhere)
