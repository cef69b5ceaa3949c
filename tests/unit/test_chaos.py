"""A run of chaos is made of its seed, and what it finds wrong is what is wrong."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from common.errors import Code, Refusal, RemoteRefusal, RequestInProgress
from common.request_key import RequestKey
from common.rpc.status import to_status
from tally.balance.v1 import balance_pb2 as pb
from tests.chaos.bulk import bulk_write, calls_of
from tests.chaos.changes import changed
from tests.chaos.history import Call, History, Intent, Outcome, Read, outcome_of
from tests.chaos.links import Link
from tests.chaos.schedule import CUT, FAULTY, HOLD, KINDS, LOSE, LOSE_COMMIT, rounds
from tests.chaos.verdict import kept_though_cancelled, out_of_order, wrong_replies
from tests.support.balances import charge, deduct
from tests.support.payments import cancel

WRITES = ("BatchWrite", "ChargeBalance", "DeductBalance")
KEY = RequestKey("ChargeBalance", "ann", "c1")


def response(sequence: int = 1, *, replayed: bool = False) -> pb.ChargeBalanceResponse:
    return pb.ChargeBalanceResponse(entry=pb.LedgerEntry(sequence=sequence), replayed=replayed)


def refusal(reason: str, code: Code = Code.FAILED_PRECONDITION, **fields: Any) -> Refusal:
    return RemoteRefusal(code, reason, "No.", {}, **fields)


def ok(start_s: float = 0, end_s: float = 1, sequence: int = 1, **fields: Any) -> Call:
    """``replayed``, ``changed``."""
    replied = response(sequence, replayed=fields.pop("replayed", False))
    return Call(start_s, end_s, Outcome.OK, replied, **fields)


def refused(reason: str = "INSUFFICIENT_FUNDS", start_s: float = 0, **fields: Any) -> Call:
    return Call(start_s, start_s + 1, Outcome.REFUSED, refusal=refusal(reason), **fields)


UNKNOWN = Call(0, 1, Outcome.UNKNOWN, refusal=refusal("", Code.UNAVAILABLE))
REUSED = refused("REQUEST_ID_REUSED", start_s=2, changed=True)


def history_of(*calls: Call, prevented: bool = False) -> History:
    intent = Intent(KEY, None, charge("ann", 5, "c1"), list(calls), prevented=prevented)
    return History({KEY: intent})


@pytest.mark.parametrize(
    ("calls", "record", "right"),
    [
        ([ok()], "ANSWERED", True),
        ([ok()], None, False),
        ([refused()], None, True),
        ([refused()], "REFUSED", True),
        ([refused()], "ANSWERED", False),
        ([refused("OVERLOADED")], "ANSWERED", False),
        ([UNKNOWN], None, True),
        ([UNKNOWN], "ANSWERED", True),
        ([refused(), UNKNOWN], "ANSWERED", True),
        ([refused(), ok(2, 3)], "ANSWERED", True),
        ([ok(), refused(start_s=2)], "ANSWERED", False),
        ([ok(), ok(2, 3, replayed=True)], "ANSWERED", True),
        ([ok(), ok(2, 3)], "ANSWERED", False),
        ([ok(), ok(2, 3, sequence=2, replayed=True)], "ANSWERED", False),
        ([ok(), REUSED], "ANSWERED", True),
        ([ok(), ok(2, 3, replayed=True, changed=True)], "ANSWERED", False),
        ([ok(), refused(start_s=2, changed=True)], "ANSWERED", False),
        ([ok(), refused("REQUEST_ID_REUSED", start_s=2)], "ANSWERED", False),
        ([Call(0, 1, Outcome.UNKNOWN, refusal=refusal("INTERNAL", Code.INTERNAL))], None, False),
    ],
)
def test_a_reply_that_the_books_contradict_is_seen(
    calls: list[Call], record: str | None, right: bool
) -> None:
    records = {KEY: record} if record else {}
    assert (not list(wrong_replies(history_of(*calls), records))) == right


def test_a_prevented_request_may_be_refused_after_ok() -> None:
    calls = [ok(), refused("DEDUCTION_CANCELLED", start_s=2)]
    assert not list(wrong_replies(history_of(*calls, prevented=True), {KEY: "CANCELLED"}))
    assert list(wrong_replies(history_of(*calls), {KEY: "ANSWERED"}))


@pytest.mark.parametrize(
    ("read", "right"),
    [
        (Read("ann", 2, 3, version=1, available_minor=5), True),
        (Read("ann", 2, 3, version=0, available_minor=0), False),
        (Read("ann", 0.5, 3, version=0, available_minor=0), True),
        (Read("ann", 2, 3, version=1, available_minor=6), False),
    ],
)
def test_a_read_of_the_past_or_of_another_balance_is_seen(read: Read, right: bool) -> None:
    history = history_of(ok(0, 1))
    history.reads.append(read)
    ledger = {("ann", "CHARGE", "c1"): (1, 5), ("ann", "CHARGE", "before"): (0, 0)}
    assert (not list(out_of_order(history, ledger))) == right


def test_a_change_that_is_not_in_the_ledger_is_seen() -> None:
    history = history_of(ok(0, 1, sequence=1))
    history.reads.append(Read("ann", 2, 3, version=0, available_minor=0))
    assert list(out_of_order(history, {("ann", "CHARGE", "before"): (0, 0)}))


def test_a_payment_that_is_kept_after_its_cancellation_is_seen() -> None:
    key = RequestKey("CancelPayment", "ann", "x1")
    history = History({key: Intent(key, None, cancel(), [ok()])})
    assert list(kept_though_cancelled(history, {"ann": ("PAID", 5)}))
    assert not list(kept_though_cancelled(history, {"ann": ("CANCELLED", 0)}))


@pytest.mark.parametrize(
    ("reason", "code", "retry_after_s", "method", "outcome"),
    [
        ("INSUFFICIENT_FUNDS", Code.FAILED_PRECONDITION, None, "DeductBalance", Outcome.REFUSED),
        ("OVERLOADED", Code.RESOURCE_EXHAUSTED, 0.5, "DeductBalance", Outcome.REFUSED),
        ("GATEWAY_UNAVAILABLE", Code.UNAVAILABLE, 1.0, "ConfirmPayment", Outcome.REFUSED),
        ("GATEWAY_UNAVAILABLE", Code.UNAVAILABLE, 1.0, "CancelPayment", Outcome.UNKNOWN),
        ("DATABASE_UNAVAILABLE", Code.UNAVAILABLE, 1.0, "DeductBalance", Outcome.UNKNOWN),
        ("", Code.DEADLINE_EXCEEDED, None, "DeductBalance", Outcome.UNKNOWN),
        ("INTERNAL", Code.INTERNAL, None, "DeductBalance", Outcome.UNKNOWN),
    ],
)
def test_what_is_known_after_a_refusal(
    reason: str, code: Code, retry_after_s: float | None, method: str, outcome: Outcome
) -> None:
    assert outcome_of(refusal(reason, code, retry_after_s=retry_after_s), method) is outcome


def test_a_changed_request_has_the_same_id_and_other_content() -> None:
    request = charge("ann", 5, "c1")
    other = changed(request)
    assert (other.request_id, other.amount.amount_minor) == ("c1", 6)
    assert request.amount.amount_minor == 5


def test_a_seed_has_one_schedule_with_every_kind_in_each_round() -> None:
    assert rounds(7, 10) == rounds(7, 10) != rounds(8, 10)
    for each in rounds(7, 10):
        assert {fault.kind for fault in each.faults} == set(KINDS)
        begins_quiet_s = each.quiet_s / (1 - FAULTY) * FAULTY
        assert all(fault.at_s + fault.duration_s <= begins_quiet_s + 1 for fault in each.faults)


@pytest.mark.parametrize(
    ("fault", "arrived", "replied"),
    [
        ("", True, True),
        (CUT, False, False),
        (HOLD, False, True),
        (LOSE, True, False),
        (LOSE_COMMIT, True, False),
    ],
)
async def test_a_link_lets_through_what_its_fault_leaves(
    fault: str, arrived: bool, replied: bool
) -> None:
    received = bytearray()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            received.extend(data)
            writer.write(b"done")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    address, port = server.sockets[0].getsockname()[:2]
    async with server, Link.to(f"{address}:{port}") as link:
        host, _, listening = link.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(listening))
        link.fail(fault)
        writer.write(b"COMMIT")
        reading = asyncio.create_task(reader.read(100))
        async with asyncio.timeout(10):
            while not (link.hits if fault else received):  # noqa: ASYNC110 - in other tasks
                await asyncio.sleep(0.01)
            assert bool(received) == arrived
            link.heal()
            try:
                reply = await reading
            except ConnectionError:
                reply = b""
        assert bool(reply) == replied
        assert (link.hits > 0) == bool(fault)
        writer.close()


def test_items_of_a_bulk_call_are_recorded_as_their_single_calls() -> None:
    stub = SimpleNamespace(
        **{name: SimpleNamespace(_method=f"/b/{name}".encode()) for name in WRITES}
    )
    bulk = bulk_write(stub, [charge("ann", 5, "c1"), deduct("ann", 9, "d1"), charge("bob", 1, "c")])
    assert [method for method, _ in bulk.singles] == [
        stub.ChargeBalance,
        stub.DeductBalance,
        stub.ChargeBalance,
    ]
    posted = pb.BatchWriteResult.Posted(entry=pb.LedgerEntry(sequence=1), replayed=True)
    errors = [to_status(refusal("INSUFFICIENT_FUNDS")), to_status(RequestInProgress())]
    replied = pb.BatchWriteResponse(
        results=[
            pb.BatchWriteResult(posted=posted),
            *(pb.BatchWriteResult(error=error) for error in errors),
        ]
    )
    first, *others = calls_of(bulk, Call(0, 1, Outcome.OK, replied))
    assert (first.outcome, first.response) == (Outcome.OK, response(replayed=True))
    assert [each.outcome for each in others] == [Outcome.REFUSED, Outcome.UNKNOWN]
    assert calls_of(bulk, UNKNOWN) == [UNKNOWN] * 3
