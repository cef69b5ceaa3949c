"""The payment's states against a gateway with a state of its own.

Replicas claim, call, lose responses, die, acquire leases and cancel in any order; late calls and
late responses arrive at any time. The payment must never contradict what the gateway did.
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

from common.money import Money
from payment_service.errors import PaymentCancelled, PaymentDeclined
from payment_service.gateway.outcomes import (
    Cancelled,
    Confirmed,
    Declined,
    GatewayOutcome,
    Mismatch,
    NotCancellable,
    NotFound,
    NotSent,
    Rejected,
    Unknown,
)
from payment_service.model import outcome as outcome_rules
from payment_service.model.confirmation import Confirmation
from payment_service.model.payment import UNDECIDED, PaymentState
from payment_service.model.payment_command import ConfirmPayment, RecordOutcome, confirm_key

START = datetime(2026, 1, 1, tzinfo=UTC)
LEASE = timedelta(seconds=10)
WINDOW = timedelta(seconds=30)
PAUSE = timedelta(seconds=1)
WON = Money("KRW", 100)
COMMAND = ConfirmPayment("order-1", "ann", WON, "key", "c1", holder="holder-0")
CONFIRMED, CANCELLED, DECLINED = Confirmed("t1", WON), Cancelled("t2", WON), Declined("NO")


def claimed(**changes: Any) -> Confirmation:
    return Confirmation.claim(replace(COMMAND, **changes), "id", "toss", START, LEASE)


def record(
    confirmation: Confirmation,
    outcome: GatewayOutcome,
    *,
    holder: str = "holder-0",
    now: datetime = START,
    keep_lease: bool = False,
) -> None:
    command = RecordOutcome("id", confirm_key("ann", "c1"), outcome, holder, PAUSE, keep_lease)
    outcome_rules.record(confirmation, command, now, LEASE, WINDOW)


class Truth(enum.Enum):
    """What the gateway did, with the outcome that a look-up has."""

    NOTHING = NotFound()
    CHARGED = CONFIRMED
    DECLINED = DECLINED
    GIVEN_BACK = CANCELLED


@dataclass
class Call:
    """A confirm: to be sent, in transit to the gateway, or with its outcome."""

    holder: str
    sent: datetime | None = None
    outcome: GatewayOutcome | None = None

    def may_arrive(self, now: datetime) -> bool:
        """Whether the gateway would still accept it."""
        return self.outcome is None and self.sent is not None and now < self.sent + WINDOW


class PaymentMachine(RuleBasedStateMachine):
    """One payment, many replicas, and a gateway that is idempotent by key."""

    def __init__(self) -> None:
        super().__init__()
        self.truth = Truth.NOTHING
        self.now = START
        self.confirmation = claimed()
        self.calls = [Call("holder-0")]
        self.workers: list[str] = []
        """The holders that acquired the payment, dead or alive."""
        self.cancel_requested = False
        self.said_not_charged = False
        self.refunded_outside = False
        self.final: PaymentState | None = None

    @property
    def state(self) -> PaymentState:
        return self.confirmation.payment.state

    @property
    def deleted(self) -> bool:
        return self.confirmation.released

    @precondition(lambda self: self.deleted)
    @rule()
    def the_key_is_claimed_again(self) -> None:
        self.__init__()  # type: ignore[misc]

    @rule(seconds=st.sampled_from([1, 12, 31]))
    def time_passes(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    @precondition(lambda self: any(call.sent is None for call in self.calls))
    @rule()
    def a_confirm_is_sent(self) -> None:
        call = next(call for call in self.calls if call.sent is None)
        may_be_sent = not self.deleted and self.confirmation.begin_confirm(call.holder, self.now)
        assert not (may_be_sent and self.cancel_requested)
        call.sent = self.now
        if not may_be_sent:
            call.outcome = NotSent("not permitted")

    @precondition(lambda self: any(call.may_arrive(self.now) for call in self.calls))
    @rule(declines=st.booleans(), loses=st.booleans())
    def a_confirm_arrives(self, declines: bool, loses: bool) -> None:
        call = next(call for call in self.calls if call.may_arrive(self.now))
        if self.truth is Truth.NOTHING:
            self.truth = Truth.DECLINED if declines else Truth.CHARGED
        # A repetition gets the first response, even if the money was given back since.
        response = DECLINED if self.truth is Truth.DECLINED else CONFIRMED
        call.outcome = Unknown("lost") if loses else response

    @precondition(lambda self: self.calls and not self.deleted)
    @rule(outcome=st.sampled_from([NotSent("no connection"), Rejected("UNAUTHORIZED_KEY")]))
    def a_confirm_never_leaves(self, outcome: GatewayOutcome) -> None:
        call = self.calls[-1]
        if call.outcome is None:
            call.outcome, call.sent = outcome, self.now

    @precondition(lambda self: any(call.outcome for call in self.calls))
    @rule(data=st.data(), keep_lease=st.booleans())
    def an_outcome_is_recorded(self, data: st.DataObject, keep_lease: bool) -> None:
        call = data.draw(st.sampled_from([call for call in self.calls if call.outcome]))
        self.calls.remove(call)
        assert call.outcome is not None
        if not self.deleted:
            record(
                self.confirmation,
                call.outcome,
                holder=call.holder,
                now=self.now,
                keep_lease=keep_lease,
            )

    @precondition(lambda self: not self.deleted and self.confirmation.open)
    @rule()
    def a_replica_acquires_it(self) -> None:
        assert self.confirmation.due_time is not None
        if self.confirmation.due_time <= self.now:
            holder = f"holder-{len(self.workers) + 1}"
            assert self.confirmation.acquire(holder, self.now, LEASE)
            self.workers.append(holder)

    @precondition(lambda self: self.workers and not self.deleted and self.confirmation.open)
    @rule(data=st.data(), loses=st.booleans())
    def a_worker_takes_a_step(self, data: st.DataObject, loses: bool) -> None:
        holder = data.draw(st.sampled_from(self.workers))
        outcome: GatewayOutcome = self.truth.value
        if self.state is PaymentState.CONFIRMED:
            assert self.truth in {Truth.CHARGED, Truth.GIVEN_BACK}, "only what was charged"
            if self.truth is Truth.CHARGED and data.draw(
                st.booleans(), label="the refund is refused"
            ):
                outcome = NotCancellable("NOT_CANCELABLE_PAYMENT")
            else:
                self.truth, outcome = Truth.GIVEN_BACK, CANCELLED
        elif self.truth is Truth.NOTHING and not self.cancel_requested:
            self.calls.append(Call(holder))
            return
        outcome = Unknown("lost") if loses else outcome
        record(self.confirmation, outcome, holder=holder, now=self.now)

    @precondition(lambda self: not self.deleted)
    @rule()
    def a_cancellation_is_requested(self) -> None:
        final = self.state in {PaymentState.DECLINED, PaymentState.CANCELLED}
        self.confirmation.request_cancel("reason", "x1", self.now)
        self.cancel_requested = self.cancel_requested or not final
        if self.confirmation.open and self.confirmation.acquire("canceller", self.now, LEASE):
            self.workers.append("canceller")

    @precondition(lambda self: not self.deleted and self.state is PaymentState.UNKNOWN)
    @rule()
    def a_person_says_that_nothing_was_charged(self) -> None:
        """Right or wrong."""
        self.confirmation.settle_as_not_charged(self.now)
        self.said_not_charged = True

    @precondition(lambda self: self.truth is Truth.CHARGED)
    @rule()
    def it_is_refunded_outside(self) -> None:
        self.truth = Truth.GIVEN_BACK
        self.refunded_outside = True

    @precondition(lambda self: not self.deleted)
    @rule()
    def it_is_looked_up_without_a_lease(self) -> None:
        record(self.confirmation, self.truth.value, holder="checker", now=self.now)

    @invariant()
    def the_state_is_what_the_gateway_did(self) -> None:
        match self.state:
            case PaymentState.CONFIRMED if self.confirmation.cancel_reason or self.refunded_outside:
                assert self.truth in {Truth.CHARGED, Truth.GIVEN_BACK}
            case PaymentState.CONFIRMED:
                assert self.truth is Truth.CHARGED
            case PaymentState.DECLINED if self.confirmation.settled_as_not_charged:
                assert self.said_not_charged or self.truth is Truth.NOTHING
                if not self.said_not_charged:
                    assert not [call for call in self.calls if call.may_arrive(self.now)]
            case PaymentState.DECLINED:
                assert self.truth is Truth.DECLINED
            case PaymentState.CANCELLED:
                assert self.truth is Truth.GIVEN_BACK

    @invariant()
    def a_freed_key_was_never_sent(self) -> None:
        if self.deleted:
            assert self.truth is Truth.NOTHING
            assert not [call for call in self.calls if call.may_arrive(self.now)]

    @invariant()
    def an_open_payment_is_due_at_some_time(self) -> None:
        if not self.deleted:
            assert (self.confirmation.due_time is not None) == self.confirmation.open
            assert self.confirmation.holder is None or self.confirmation.open

    @invariant()
    def a_final_state_does_not_change(self) -> None:
        if self.final is not None:
            assert self.state is self.final
        final = self.state in {PaymentState.DECLINED, PaymentState.CANCELLED}
        if final and not self.confirmation.settled_as_not_charged:
            self.final = self.state

    @invariant()
    def a_cancellation_request_is_never_lost(self) -> None:
        confirmation = self.confirmation
        if self.cancel_requested and not self.deleted and self.state is not PaymentState.DECLINED:
            assert confirmation.cancel_reason is not None
            assert confirmation.payment.cancel_request_time is not None
            ended = self.state is PaymentState.CANCELLED or confirmation.refund_refused
            assert confirmation.open or ended


TestPayment = PaymentMachine.TestCase
TestPayment.settings = settings(max_examples=200, stateful_step_count=40)


@pytest.mark.parametrize("outcome", [NotSent("no connection"), Rejected("UNAUTHORIZED_KEY")])
def test_only_the_claims_own_first_call_frees_the_key(outcome: GatewayOutcome) -> None:
    own = claimed()
    record(own, outcome)
    assert own.released

    other = claimed()
    record(other, outcome, holder="another")
    assert not other.released
    assert not other.changed or other.new

    late = START + LEASE
    acquired = claimed()
    assert acquired.acquire("second", late, LEASE)
    assert acquired.payment.state is PaymentState.UNKNOWN
    for holder in ("holder-0", "second"):
        record(acquired, outcome, holder=holder, now=late)
        assert not acquired.released


@pytest.mark.parametrize("outcome", [Unknown("lost"), Mismatch(("totalAmount",)), NotFound()])
@pytest.mark.parametrize("keep_lease", [False, True])
def test_an_unknown_outcome_is_postponed_or_keeps_the_lease(
    outcome: GatewayOutcome, keep_lease: bool
) -> None:
    payment = claimed()
    record(payment, outcome, keep_lease=keep_lease)
    assert payment.payment.state is PaymentState.UNKNOWN
    expected = ("holder-0", START + LEASE) if keep_lease else (None, START + PAUSE)
    assert (payment.holder, payment.due_time) == expected


@pytest.mark.parametrize("state", sorted(UNDECIDED))
@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        (CONFIRMED, PaymentState.CONFIRMED),
        (DECLINED, PaymentState.DECLINED),
        (CANCELLED, PaymentState.CANCELLED),
    ],
)
def test_a_certain_outcome_counts_from_any_replica(
    state: PaymentState, outcome: GatewayOutcome, expected: PaymentState
) -> None:
    payment = claimed()
    if state is PaymentState.UNKNOWN:
        payment.acquire("second", START + LEASE, LEASE)
    record(payment, outcome, holder="a replica without a lease")
    assert payment.payment.state is expected
    assert not payment.open


def test_a_lease_excludes_others_until_it_ends() -> None:
    payment = claimed()
    assert not payment.acquire("second", START + LEASE / 2, LEASE)
    assert payment.acquire("holder-0", START + LEASE / 2, LEASE)
    assert payment.acquire("second", START + LEASE, LEASE)
    assert payment.tries == 1


def test_the_result_of_a_finished_confirmation() -> None:
    confirmed, refused, undone, cancelling = (claimed() for _ in range(4))
    record(confirmed, CONFIRMED)
    assert confirmed.result().gateway_transaction_id == "t1"
    record(refused, DECLINED)
    with pytest.raises(PaymentDeclined) as raised:
        refused.result()
    assert raised.value.metadata == {"payment_id": "id", "failure_code": "NO"}
    record(undone, CANCELLED)
    cancelling.request_cancel("reason", "x1", START)
    record(cancelling, CONFIRMED)
    for cancelled in (undone, cancelling):
        with pytest.raises(PaymentCancelled):
            cancelled.result()
    assert cancelling.open
    assert cancelling.refund.idempotency_key != cancelling.charge.idempotency_key


def test_a_payments_update_time_never_goes_back() -> None:
    payment = claimed()
    record(payment, CONFIRMED, now=START - timedelta(hours=1))
    assert payment.payment.update_time == START


def test_each_try_of_a_refund_has_its_own_idempotency_key() -> None:
    paid = claimed()
    record(paid, CONFIRMED)
    paid.request_cancel("no", "x1", START)
    assert paid.acquire("holder-1", START, LEASE)
    first = paid.refund.idempotency_key
    assert paid.acquire("holder-1", START, LEASE)
    assert paid.refund.idempotency_key == first
    record(paid, Rejected("UNAUTHORIZED_KEY"), holder="holder-1")
    assert paid.acquire("holder-2", START, LEASE)
    assert paid.refund.idempotency_key != first
    assert paid.charge == claimed().charge


def test_all_tries_at_refunding_a_part_have_one_idempotency_key() -> None:
    """Under another key the gateway would give the part back again."""
    paid = claimed()
    record(paid, CONFIRMED)
    paid.payment = replace(paid.payment, refunded_minor=1)
    paid.request_cancel("no", "x1", START)
    assert paid.acquire("holder-1", START, LEASE)
    first = paid.refund.idempotency_key
    record(paid, Rejected("UNAUTHORIZED_KEY"), holder="holder-1")
    assert paid.acquire("holder-2", START, LEASE)
    assert paid.refund.idempotency_key == first
