"""Deductions that begin at the same time share a call; each has its own outcome."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from common import deadlines
from common.backoff import Backoff
from common.errors import Refusal
from common.rpc import retry
from common.rpc.status import to_status
from common.tasks import DetachedTasks
from order_service import balance_client
from order_service.balance_client import SHARED_CALL_MAX, BalanceClient
from tally.balance.v1 import balance_pb2 as pb
from tally_client.rpc.channels import open_channel
from tests.support.balances import deduct
from tests.support.fake_server import HANG, Answer, Received, fake_server, refusal
from tests.support.time_limits import LONG_S

POOR = refusal("FAILED_PRECONDITION", "INSUFFICIENT_FUNDS", retry_after_s=None)
BUSY = refusal("UNAVAILABLE", "DATABASE_UNAVAILABLE")
UNDECIDED = refusal("ABORTED", "REQUEST_IN_PROGRESS", retry_after_s=LONG_S)
Outcome = Callable[[str], Refusal | None]
"""The error of an item by its request_id; None if it is posted."""


def posted(_request_id: str) -> None:
    """Every item is posted."""


def batch_write(outcome: Outcome) -> Callable[[Any], Any]:
    async def answer(request: pb.BatchWriteRequest) -> pb.BatchWriteResponse:
        response = pb.BatchWriteResponse()
        for item in request.items:
            result = response.results.add()
            if (error := outcome(item.deduct.request_id)) is None:
                result.posted.SetInParent()
            else:
                result.error.CopyFrom(to_status(error))
        return response

    return answer


@asynccontextmanager
async def balance(shared: Answer, alone: Answer = ()) -> AsyncIterator[tuple[Any, Received]]:
    """A function that deducts once for each name at once, and what the service received."""
    received = Received()
    answers = {"BatchWrite": shared, "DeductBalance": alone or [pb.DeductBalanceResponse()]}
    async with (
        fake_server(received, **answers) as address,
        BalanceClient(open_channel(address)) as client,
    ):

        async def deduct_all(*names: str, limit_s: float = LONG_S) -> dict[str, str]:
            async def one(name: str) -> str:
                with deadlines.within(limit_s):
                    request = deduct(f"user-{name}", 1, name)
                    await client.deduct(request, limit_s=LONG_S, attempts_max=2)
                return "DEDUCTED"

            replies = await asyncio.gather(*map(one, names), return_exceptions=True)
            return {
                name: reply.reason if isinstance(reply, Refusal) else str(reply)
                for name, reply in zip(names, replies, strict=True)
            }

        yield deduct_all, received


async def test_deductions_of_one_moment_share_a_call_and_one_alone_has_its_own() -> None:
    async with balance(batch_write(posted)) as (deduct_all, received):
        assert await deduct_all("a", "b", "c") == dict.fromkeys("abc", "DEDUCTED")
        [shared] = received.requests["BatchWrite"]
        assert [item.deduct for item in shared.items] == [
            deduct(f"user-{name}", 1, name) for name in "abc"
        ]
        assert received.attempts["DeductBalance"] == 0
        assert await deduct_all("d") == {"d": "DEDUCTED"}
        assert received.attempts == {"BatchWrite": 1, "DeductBalance": 1}


async def test_each_deduction_of_a_shared_call_has_its_own_outcome() -> None:
    """One is refused, one is refused for now and repeated by itself."""
    outcomes = {"poor": POOR, "busy": BUSY}
    async with balance(batch_write(outcomes.get)) as (deduct_all, received):
        assert await deduct_all("ok", "poor", "busy") == {
            "ok": "DEDUCTED",
            "poor": "INSUFFICIENT_FUNDS",
            "busy": "DEDUCTED",
        }
        repeated = [sent.request_id for sent in received.requests["DeductBalance"]]
    assert repeated == ["busy"], "with the request_id of the first attempt"


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[Refusal]:
    """The refusals after which a deduction has paused; the pauses themselves are left out."""
    refusals: list[Refusal] = []

    async def pause_after(refusal: Refusal, _operation: str) -> None:
        refusals.append(refusal)

    monkeypatch.setattr(retry, "pause_after", pause_after)
    return refusals


NO_RESULT = pb.BatchWriteResult()


@pytest.mark.parametrize(
    ("shared", "paused"),
    [
        pytest.param([refusal("UNAVAILABLE", "", retry_after_s=None)], 2, id="replica gone"),
        pytest.param([refusal("RESOURCE_EXHAUSTED", "OVERLOADED")], 2, id="overloaded"),
        pytest.param([refusal("UNAVAILABLE", "REPLICA_STOPPING")], 2, id="stopping"),
        pytest.param([BUSY], 2, id="no database"),
        pytest.param([HANG], 2, id="no reply"),
        pytest.param([refusal("UNIMPLEMENTED", "", retry_after_s=None)], 0, id="older release"),
        pytest.param([pb.BatchWriteResponse()], 0, id="no results"),
        pytest.param([pb.BatchWriteResponse(results=[NO_RESULT] * 2)], 0, id="empty results"),
        pytest.param([RuntimeError("a defect")], 0, id="a defect"),
    ],
)
async def test_after_a_shared_call_that_fails_each_is_called_by_itself(
    shared: Sequence[Any], paused: int, pauses: list[Refusal], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a pause, if the service may accept the same call a little later."""
    monkeypatch.setattr(balance_client, "SHARED_CALL_S", 0.2 if HANG in shared else LONG_S / 2)
    async with balance(shared) as (deduct_all, received):
        assert await deduct_all("a", "b") == dict.fromkeys("ab", "DEDUCTED")
        alone = {sent.request_id for sent in received.requests["DeductBalance"]}
        assert await deduct_all("c", "d") == dict.fromkeys("cd", "DEDUCTED")
    assert alone == {"a", "b"}
    assert received.attempts == {"BatchWrite": 1, "DeductBalance": 4}, "none is shared for a while"
    assert len(set(map(id, pauses))) == len(pauses) == paused, "each has an exception of its own"


@pytest.mark.parametrize(
    ("shared", "reason"),
    [
        pytest.param(
            refusal("RESOURCE_EXHAUSTED", "OVERLOADED", retry_after_s=2 * LONG_S),
            "OVERLOADED",
            id="overloaded for longer",
        ),
        pytest.param(HANG, "", id="no reply"),
    ],
)
async def test_a_deduction_whose_deadline_ends_before_its_pause_is_not_called_again(
    shared: object, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "BACKOFF", Backoff(2 * LONG_S, 2 * LONG_S))
    monkeypatch.setattr(balance_client, "SHARED_CALL_S", 0.2 if shared is HANG else LONG_S / 2)
    async with balance([shared]) as (deduct_all, received):
        assert await deduct_all("a", "b") == dict.fromkeys("ab", reason)
    assert received.attempts == {"BatchWrite": 1}


async def test_an_empty_result_leaves_the_other_deductions_theirs() -> None:
    response = pb.BatchWriteResponse(results=[NO_RESULT, NO_RESULT])
    response.results[0].posted.SetInParent()
    async with balance([response]) as (deduct_all, received):
        assert await deduct_all("a", "b") == dict.fromkeys("ab", "DEDUCTED")
        assert [sent.request_id for sent in received.requests["DeductBalance"]] == ["b"]


async def test_when_a_shared_call_cannot_begin_each_is_called_by_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(_tasks: DetachedTasks, work: Coroutine[Any, Any, None]) -> None:
        work.close()
        raise MemoryError

    monkeypatch.setattr(DetachedTasks, "start", fail)
    async with balance(batch_write(posted)) as (deduct_all, received):
        loop = asyncio.get_running_loop()
        errors: list[dict[str, Any]] = []
        loop.set_exception_handler(lambda _loop, context: errors.append(context))
        assert await deduct_all("a", "b") == dict.fromkeys("ab", "DEDUCTED")
        loop.set_exception_handler(None)
    assert received.attempts == {"DeductBalance": 2}
    assert [type(error["exception"]) for error in errors] == [MemoryError]


@pytest.mark.parametrize(
    ("pause_s", "attempts"),
    [
        pytest.param(LONG_S, {"BatchWrite": 1, "DeductBalance": 3}, id="in the pause"),
        pytest.param(0.0, {"BatchWrite": 2, "DeductBalance": 1}, id="after the pause"),
    ],
)
async def test_a_deduction_that_a_shared_call_left_undecided_is_called_at_once(
    pause_s: float, attempts: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its account is locked, or a bulk job is before it. Then none is shared for a while."""
    monkeypatch.setattr(balance_client, "PAUSE_S", pause_s)
    async with balance(batch_write({"slow": UNDECIDED}.get)) as (deduct_all, received):
        assert await deduct_all("ok", "slow") == dict.fromkeys(["ok", "slow"], "DEDUCTED")
        assert [sent.request_id for sent in received.requests["DeductBalance"]] == ["slow"]
        assert await deduct_all("a", "b") == dict.fromkeys("ab", "DEDUCTED")
    assert received.attempts == attempts


async def test_a_deduction_with_little_time_left_shares_no_call() -> None:
    async with balance(batch_write(posted)) as (deduct_all, received):
        little_s = balance_client.SHARED_CALL_S * 0.9
        assert await deduct_all("a", "b", limit_s=little_s) == dict.fromkeys("ab", "DEDUCTED")
    assert received.attempts == {"DeductBalance": 2}


async def test_a_shared_call_has_a_limited_number_of_deductions() -> None:
    names = [str(number) for number in range(2 * SHARED_CALL_MAX + 1)]
    async with balance(batch_write(posted)) as (deduct_all, received):
        assert await deduct_all(*names) == dict.fromkeys(names, "DEDUCTED")
        sizes = [len(request.items) for request in received.requests["BatchWrite"]]
    assert sizes == [SHARED_CALL_MAX, SHARED_CALL_MAX]
    assert received.attempts["DeductBalance"] == 1


async def test_a_deduction_whose_saga_is_cancelled_leaves_the_others_their_replies() -> None:
    received, go_on = Received(), asyncio.Event()

    async def answer(request: pb.BatchWriteRequest) -> pb.BatchWriteResponse:
        await go_on.wait()
        response: pb.BatchWriteResponse = await batch_write(posted)(request)
        return response

    async with (
        fake_server(received, BatchWrite=answer) as address,
        BalanceClient(open_channel(address)) as client,
    ):
        lost, kept = (
            asyncio.create_task(
                client.deduct(deduct("ann", 1, name), limit_s=LONG_S, attempts_max=1)
            )
            for name in "ab"
        )
        await received.arrived.wait()
        lost.cancel()
        go_on.set()
        await kept
        with pytest.raises(asyncio.CancelledError):
            await lost
    assert received.attempts == {"BatchWrite": 1}
