"""The payment's states against a gateway that has a truth of its own.

Replicas claim, call, lose answers, die, take over and cancel in any order; late calls and late
answers arrive whenever they like. What Tally says must never contradict what the gateway did.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from common.errors import RequestIdReused
from common.money import Money
from payment_service.errors import PaymentCancelled, PaymentDeclined
from payment_service.gateway import (
    Cancelled,
    Confirmed,
    Declined,
    Mismatch,
    NotCancellable,
    NotFound,
    NotSent,
    Rejected,
    Unknown,
)
from payment_service.model import (
    UNDECIDED,
    Confirmation,
    ConfirmPayment,
    Outcome,
    Settle,
    State,
)

START = datetime(2026, 1, 1, tzinfo=UTC)
LEASE = timedelta(seconds=10)
PAUSE = timedelta(seconds=1)
WON = Money("KRW", 100)
COMMAND = ConfirmPayment("order-1", "ann", WON, "key", "c1", holder="holder-0")


def claimed(**changes: Any) -> Confirmation:
    return Confirmation.claim(replace(COMMAND, **changes), "id", "toss", START, LEASE)


def settle(
    confirmation: Confirmation,
    outcome: Outcome,
    *,
    holder: str = "holder-0",
    now: datetime = START,
    go_on: bool = False,
) -> None:
    command = Settle("id", "ann", "c1", outcome, holder, PAUSE, go_on=go_on)
    confirmation.settle(command, now, LEASE)


class Truth(enum.Enum):
    """What the gateway did."""

    NOTHING = "nothing"
    CHARGED = "charged"
    DECLINED = "declined"
    GIVEN_BACK = "given back"


@dataclass
class Call:
    """A confirm on its way to the gateway, and back."""

    holder: str
    heard: Outcome | None = None


class Gateway:
    """Idempotent by key: the first confirm that arrives decides."""

    def __init__(self) -> None:
        self.truth = Truth.NOTHING

    def confirm(self, *, declines: bool) -> Outcome:
        if self.truth is Truth.NOTHING:
            self.truth = Truth.DECLINED if declines else Truth.CHARGED
        # A repetition is told the first answer, even if it was given back since.
        return Declined("NO") if self.truth is Truth.DECLINED else Confirmed("t1", WON)

    def find(self) -> Outcome:
        told: dict[Truth, Outcome] = {
            Truth.NOTHING: NotFound(),
            Truth.CHARGED: Confirmed("t1", WON),
            Truth.DECLINED: Declined("NO"),
            Truth.GIVEN_BACK: Cancelled("t2", WON),
        }
        return told[self.truth]

    def cancel(self) -> Outcome:
        assert self.truth in {Truth.CHARGED, Truth.GIVEN_BACK}, "only what is known to be charged"
        self.truth = Truth.GIVEN_BACK
        return Cancelled("t2", WON)


class Lives(RuleBasedStateMachine):
    """One payment, many replicas."""

    def __init__(self) -> None:
        super().__init__()
        self.gateway = Gateway()
        self.now = START
        self.payment = claimed()
        self.calls = [Call("holder-0")]
        self.workers: list[str] = []
        """Those who took the payment up, dead or alive."""
        self.wish = False
        self.final: State | None = None

    @property
    def gone(self) -> bool:
        return self.payment.released

    @rule(seconds=st.sampled_from([1, 12]))
    def time_passes(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    @precondition(lambda self: any(call.heard is None for call in self.calls))
    @rule(declines=st.booleans(), loses=st.booleans())
    def a_confirm_arrives(self, declines: bool, loses: bool) -> None:
        call = next(call for call in self.calls if call.heard is None)
        answer = self.gateway.confirm(declines=declines)
        call.heard = Unknown("lost") if loses else answer

    @precondition(lambda self: self.calls and not self.gone)
    @rule(why=st.sampled_from([NotSent("no connection"), Rejected("UNAUTHORIZED_KEY")]))
    def a_confirm_never_leaves(self, why: Outcome) -> None:
        call = self.calls[-1]
        if call.heard is None:
            call.heard = why

    @precondition(lambda self: any(call.heard for call in self.calls))
    @rule(data=st.data(), go_on=st.booleans())
    def an_answer_is_stored(self, data: st.DataObject, go_on: bool) -> None:
        call = data.draw(st.sampled_from([call for call in self.calls if call.heard]))
        self.calls.remove(call)
        assert call.heard is not None
        if not self.gone:
            settle(self.payment, call.heard, holder=call.holder, now=self.now, go_on=go_on)

    @precondition(lambda self: not self.gone and self.payment.open)
    @rule()
    def somebody_takes_it_up(self) -> None:
        holder = f"holder-{len(self.workers) + 1}"
        assert self.payment.due_time is not None
        if self.payment.due_time <= self.now:
            assert self.payment.take(holder, self.now, LEASE)
            self.workers.append(holder)

    @precondition(lambda self: self.workers and not self.gone and self.payment.open)
    @rule(data=st.data(), loses=st.booleans())
    def a_worker_does_a_step(self, data: st.DataObject, loses: bool) -> None:
        holder = data.draw(st.sampled_from(self.workers))
        if self.payment.payment.state is State.CONFIRMED:
            outcome = self.gateway.cancel()
        else:
            outcome = self.gateway.find()
            if isinstance(outcome, NotFound):
                if data.draw(st.booleans(), label="the confirm leaves"):
                    self.calls.append(Call(holder))
                    return
                outcome = NotSent("no connection")
        heard = Unknown("lost") if loses else outcome
        settle(self.payment, heard, holder=holder, now=self.now)

    @precondition(lambda self: not self.gone)
    @rule()
    def a_cancellation_comes(self) -> None:
        decided = self.payment.payment.state in {State.DECLINED, State.CANCELLED}
        self.payment.ask_cancel("why", "x1", "canceller", self.now, LEASE)
        self.wish = self.wish or not decided
        if self.payment.open and self.payment.take("canceller", self.now, LEASE):
            self.workers.append("canceller")

    @invariant()
    def tally_says_what_the_gateway_did(self) -> None:
        told = {
            State.CONFIRMED: {Truth.CHARGED, Truth.GIVEN_BACK},
            State.DECLINED: {Truth.DECLINED},
            State.CANCELLED: {Truth.GIVEN_BACK},
        }
        state = self.payment.payment.state
        if state in told:
            assert self.gateway.truth in told[state]
        if state is State.CONFIRMED and not self.wish:
            assert self.gateway.truth is Truth.CHARGED

    @invariant()
    def a_freed_key_was_never_sent(self) -> None:
        if self.gone:
            assert self.gateway.truth is Truth.NOTHING
            assert not [call for call in self.calls if call.heard is None]

    @invariant()
    def what_is_open_is_taken_up_some_time(self) -> None:
        if self.gone:
            return
        assert (self.payment.due_time is not None) == self.payment.open
        assert self.payment.holder is None or self.payment.open

    @invariant()
    def what_is_final_stays(self) -> None:
        state = self.payment.payment.state
        if self.final is not None:
            assert state is self.final
        if state in {State.DECLINED, State.CANCELLED}:
            self.final = state

    @invariant()
    def a_wish_is_never_forgotten(self) -> None:
        if self.wish and not self.gone and self.payment.payment.state is not State.DECLINED:
            assert self.payment.cancel_reason is not None
            assert self.payment.open or self.payment.payment.state is State.CANCELLED


TestLives = Lives.TestCase
TestLives.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("outcome", [NotSent("no connection"), Rejected("UNAUTHORIZED_KEY")])
def test_only_the_claims_own_first_call_frees_the_key(outcome: Outcome) -> None:
    mine = claimed()
    settle(mine, outcome)
    assert mine.released

    others = claimed()
    settle(others, outcome, holder="somebody else")
    assert not others.released
    assert not others.changed or others.new

    late = START + LEASE
    taken = claimed()
    assert taken.take("taker", late, LEASE)
    assert taken.payment.state is State.UNKNOWN
    for holder in ("holder-0", "taker"):
        settle(taken, outcome, holder=holder, now=late)
        assert not taken.released


@pytest.mark.parametrize("outcome", [Unknown("lost"), Mismatch(("totalAmount",)), NotFound()])
def test_what_is_not_known_is_put_off_or_tried_again_at_once(outcome: Outcome) -> None:
    put_off = claimed()
    settle(put_off, outcome)
    assert put_off.payment.state is State.UNKNOWN
    assert (put_off.holder, put_off.due_time) == (None, START + PAUSE)

    tried_on = claimed()
    settle(tried_on, outcome, go_on=True)
    assert tried_on.payment.state is State.UNKNOWN
    assert (tried_on.holder, tried_on.due_time) == ("holder-0", START + LEASE)


@pytest.mark.parametrize("state", sorted(UNDECIDED))
def test_certain_news_counts_whoever_brings_it(state: State) -> None:
    for outcome, expected in (
        (Confirmed("t1", WON), State.CONFIRMED),
        (Declined("NO"), State.DECLINED),
        (Cancelled("t1", WON), State.CANCELLED),
    ):
        payment = claimed()
        if state is State.UNKNOWN:
            payment.take("taker", START + LEASE, LEASE)
        settle(payment, outcome, holder="a replica that was long asleep")
        assert payment.payment.state is expected
        assert not payment.open


def test_a_lease_keeps_others_away_until_it_ends() -> None:
    payment = claimed()
    assert not payment.take("taker", START + LEASE / 2, LEASE)
    assert payment.take("holder-0", START + LEASE / 2, LEASE)
    assert payment.take("taker", START + LEASE, LEASE)
    assert payment.tries == 1


def test_what_is_told_of_a_finished_one() -> None:
    confirmed, refused, undone, wished = (claimed() for _ in range(4))
    settle(confirmed, Confirmed("t1", WON))
    assert confirmed.told().gateway_transaction_id == "t1"
    settle(refused, Declined("NO"))
    with pytest.raises(PaymentDeclined) as told:
        refused.told()
    assert told.value.metadata == {"payment_id": "id", "failure_code": "NO"}
    settle(undone, Cancelled("t1", WON))
    wished.ask_cancel("why", "x1", "canceller", START, LEASE)
    settle(wished, Confirmed("t1", WON))
    for cancelled in (undone, wished):
        with pytest.raises(PaymentCancelled):
            cancelled.told()
    assert wished.open
    assert wished.refund.idempotency_key != wished.charge.idempotency_key


@pytest.mark.parametrize(
    "changes",
    [{"order_id": "order-2"}, {"payment_key": "other"}, {"amount": Money("USD", 100)}],
)
def test_other_content_under_the_same_request_is_noticed(changes: dict[str, Any]) -> None:
    payment = claimed()
    payment.check_same(replace(COMMAND, holder="another call"))
    with pytest.raises(RequestIdReused):
        payment.check_same(replace(COMMAND, **changes))


def test_a_payments_time_never_goes_back() -> None:
    payment = claimed()
    settle(payment, Confirmed("t1", WON), now=START - timedelta(hours=1))
    assert payment.payment.update_time == START


def test_every_refund_that_is_tried_anew_has_a_key_of_its_own() -> None:
    paid = claimed()
    settle(paid, Confirmed("transaction-1", WON))
    paid.ask_cancel("no", "x1", "holder-1", START, LEASE)
    assert paid.take("holder-1", START, LEASE)
    first = paid.refund.idempotency_key
    assert paid.take("holder-1", START, LEASE)
    assert paid.refund.idempotency_key == first
    settle(paid, NotCancellable("NOT_CANCELABLE_AMOUNT"), holder="holder-1")
    assert paid.take("holder-2", START, LEASE)
    assert paid.refund.idempotency_key != first
    assert paid.charge == claimed().charge
