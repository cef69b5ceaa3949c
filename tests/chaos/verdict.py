"""Every reply compared with the books, after everything has ended.

- OK is in the books, and every OK to one request is the same response, replayed in all but one.
- What was only refused is absent. An unknown outcome may be either.
- Another body under a used request_id is REQUEST_ID_REUSED.
- The changes and reads of an account have one order that fits their times.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from google.protobuf.text_format import MessageToString

from common.errors import Code
from common.request_key import RequestKey
from tests.chaos.history import Call, CartCall, History, Intent, Outcome
from tests.faults.books import States

Records = Mapping[RequestKey, str]
"""The state of each stored answer."""
Ledger = Mapping[tuple[str, str, str], tuple[int, int]]
"""Sequence and balance after each entry, by user, kind (as in the database) and request_id."""

ANSWERED, CANCELLED = "ANSWERED", "CANCELLED"
LISTED_MAX: Final = 3
"""Of each account: one change at the wrong place contradicts all that follow."""
_PREVENTED: Final = frozenset({"DEDUCTION_CANCELLED", "PAYMENT_CANCELLED", "REDEMPTION_CANCELLED"})
_UNDOES: Final = {
    "RefundDeduction": ("DeductBalance", "deduct_request_id"),
    "RestoreCoupon": ("RedeemCoupon", "redeem_request_id"),
}
"""The method whose effect a method undoes, and the field that names its request."""
_LATEST: Final = frozenset({"CancelOrder", "CancelPayment"})
"""Methods whose response is the row as it is now, on its way to its end."""
_KINDS: Final = {
    "ChargeBalance": "CHARGE",
    "DeductBalance": "DEDUCT",
    "RefundDeduction": "REFUND",
}


def wrong_replies(history: History, records: Records) -> Iterator[str]:
    """Replies that the books or other replies contradict."""
    for intent in history.intents.values():
        for what in (*_of_one_request(intent), *_in_the_books(intent, records)):
            yield f"{intent.key.method} {intent.key.scope} {intent.key.request_id}: {what}"


def _of_one_request(intent: Intent) -> Iterator[str]:
    for call in intent.calls:
        if call.refusal is not None and call.refusal.code is Code.INTERNAL:
            yield f"INTERNAL: {call.refusal.message}"
        if not call.changed and call.reason == "REQUEST_ID_REUSED":
            yield "REQUEST_ID_REUSED for the same body"
    yield from _of_other_bodies(intent)
    yield from _of_repeats(intent)


def _of_other_bodies(intent: Intent) -> Iterator[str]:
    for call in intent.calls:
        if call.changed and call.outcome is Outcome.OK:
            yield "OK for another body"
        elif call.changed and call.outcome is Outcome.REFUSED and not _may_refuse_other(call):
            yield f"{call.reason} for another body"


def _of_repeats(intent: Intent) -> Iterator[str]:
    answered = list(intent.of(Outcome.OK))
    if not answered:
        return
    if sum(not call.response.replayed for call in answered) > 1:
        yield "OK without replayed more than once"
    if intent.key.method not in _LATEST:
        first, *others = (_content(call.response) for call in answered)
        if any(other != first for other in others):
            yield f"OK with different responses: {' and '.join(map(_line, (first, *others)))}"
    first_s = min(call.end_s for call in answered)
    for call in intent.of(Outcome.REFUSED):
        expected = intent.prevented and call.reason in _PREVENTED
        if call.start_s > first_s and not expected and not _is_retryable(call):
            yield f"{call.reason} after OK"


def _may_refuse_other(call: Call) -> bool:
    return call.reason == "REQUEST_ID_REUSED" or _is_retryable(call) or call.reason in _PREVENTED


def _is_retryable(call: Call) -> bool:
    return call.refusal is not None and (
        call.refusal.retry_after_s is not None or call.reason == "DEADLINE_TOO_SHORT"
    )


def _content(response: Any) -> Any:
    same = type(response)()
    same.CopyFrom(response)
    same.ClearField("replayed")
    return same


def _line(response: Any) -> str:
    return MessageToString(response, as_one_line=True)


def _in_the_books(intent: Intent, records: Records) -> Iterator[str]:
    state = records.get(intent.key)
    undone = _UNDOES.get(intent.key.method)
    if undone and intent.answered:
        method, field = undone
        original = RequestKey(method, intent.key.scope, getattr(intent.request, field))
        if records.get(original) != CANCELLED:
            yield f"OK, and the books have {records.get(original)} for {original.request_id}"
    if intent.prevented:
        return
    if intent.answered and state != ANSWERED:
        yield f"OK, and the books have {state}"
    elif intent.outcome_is(Outcome.REFUSED) and state == ANSWERED:
        yield f"{intent.calls[0].reason}, and the books have {state}"


def kept_though_cancelled(history: History, states: States) -> Iterator[str]:
    """Payments of merchants that are confirmed although their cancellation was answered.

    ``states``: of their orders, by the user_id, of whom each has one.
    """
    for key, intent in history.intents.items():
        paid = states.get(key.scope, ("", 0))[0] == "PAID"
        if key.method == "CancelPayment" and intent.answered and paid:
            yield f"CancelPayment {key.scope}: OK, and the payment is confirmed"


def answered_while_away(history: History, windows: Iterable[tuple[float, float]]) -> Iterator[str]:
    """Changes that began and returned OK while no COMMIT could be on the standby."""
    made: list[tuple[str, Call | CartCall]] = [
        (intent.key.method, call)
        for intent in history.intents.values()
        for call in intent.of(Outcome.OK)
    ]
    made += [
        (call.method, call) for call in history.carts if call.changes and call.outcome is Outcome.OK
    ]
    for begin_s, end_s in windows:
        for method, call in made:
            if begin_s < call.start_s and call.end_s < end_s:
                yield f"{method}: OK while the standby was away"


# -- one order for each account --------------------------------------------------------------------


def out_of_order(history: History, ledger: Ledger) -> Iterator[str]:
    """Changes and reads that began after others had ended, and come before them in the ledger.

    The sequence is the order: an entry is at twice its sequence, a read right after its version.
    """
    for user_id in {read.user_id for read in history.reads}:
        operations = [*_changes(history, ledger, user_id), *_reads(history, user_id)]
        for what in itertools.islice(violations(operations), LISTED_MAX):
            yield f"account {user_id}: {what}"
        balances = {
            sequence: after for (user, _, _), (sequence, after) in ledger.items() if user == user_id
        }
        for read in history.reads:
            if read.user_id == user_id and balances.get(read.version) != read.available_minor:
                known = balances.get(read.version)
                yield f"account {user_id}: {read}, and the ledger has {known}"


Operation = tuple[float, float, int, str]
"""Begin, end, position and name."""


def _changes(history: History, ledger: Ledger, user_id: str) -> Iterator[Operation]:
    for key, intent in history.intents.items():
        kind = _KINDS.get(key.method)
        if kind is None or key.scope != user_id or not intent.calls:
            continue
        entry = ledger.get((user_id, kind, key.request_id))
        answered = intent.answered
        if answered is not None and answered.response.HasField("entry"):
            replied = answered.response.entry.sequence
            name = f"{key.method} {key.request_id}"
            if entry is None or entry[0] != replied:
                # Its position is that of the reply: the comparison shows where it belongs.
                yield answered.start_s, answered.end_s, 2 * replied, f"{name}, not in the ledger"
        if entry is not None:
            start_s = min(call.start_s for call in intent.calls)
            end_s = answered.end_s if answered is not None else float("inf")
            yield start_s, end_s, 2 * entry[0], f"{key.method} {key.request_id}"


def _reads(history: History, user_id: str) -> Iterator[Operation]:
    for read in history.reads:
        if read.user_id == user_id:
            yield read.start_s, read.end_s, 2 * read.version + 1, f"read of version {read.version}"


def violations(operations: Iterable[Operation]) -> Iterator[str]:
    """Operations that began after one of a higher position had ended."""
    by_start = sorted(operations)
    by_end = sorted(by_start, key=lambda operation: operation[1])
    ended, highest, last = 0, -1, ""
    for start_s, _, position, name in by_start:
        while ended < len(by_end) and by_end[ended][1] < start_s:
            if by_end[ended][2] > highest:
                _, _, highest, last = by_end[ended]
            ended += 1
        if position < highest:
            yield f"{name} began after {last} had ended, and is before it"
