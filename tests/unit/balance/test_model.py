"""The rules of accounts: after any commands, the ledger adds up to the balance."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from balance_service.errors import BalanceLimitExceeded, InsufficientFunds
from balance_service.model import (
    Account,
    AccountId,
    ChargeBalance,
    DeductBalance,
    Entry,
    Kind,
    RefundDeduction,
)
from common.ids import new_id
from common.money import AMOUNT_MAX, BALANCE_MAX, INT64_MAX, Money

ANN = AccountId("ann", "KRW")
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
amounts = st.integers(1, AMOUNT_MAX) | st.integers(BALANCE_MAX // 10, BALANCE_MAX)
times = st.integers(-1_000, 1_000).map(lambda seconds: EPOCH + timedelta(seconds=seconds))


def won(amount_minor: int) -> Money:
    return Money("KRW", amount_minor)


class AccountMachine(RuleBasedStateMachine):
    """Charges, deductions and refunds in any order, at any time of the clock."""

    def __init__(self) -> None:
        super().__init__()
        self.account = Account(ANN)
        self.refundable: list[Entry] = []
        self.expected = 0
        self.charged = 0

    @initialize(times=st.integers(0, 9))
    def charge_and_spend_the_largest_balance(self, times: int) -> None:
        """Nine times is close to what 64 bits hold."""
        for _ in range(times):
            self.charge(BALANCE_MAX, EPOCH)
            self.deduct(BALANCE_MAX, EPOCH)

    @rule(amount=amounts, now=times)
    def charge(self, amount: int, now: datetime) -> None:
        if self.expected + amount > BALANCE_MAX or self.charged + amount > INT64_MAX:
            with pytest.raises(BalanceLimitExceeded):
                self.account.charge(ChargeBalance("ann", won(amount), "c"), new_id(), now)
            return
        self.account.charge(ChargeBalance("ann", won(amount), "c"), new_id(), now)
        self.expected += amount
        self.charged += amount

    @rule(amount=amounts, now=times)
    def deduct(self, amount: int, now: datetime) -> None:
        command = DeductBalance("ann", won(amount), "d", None)
        if amount > self.expected:
            with pytest.raises(InsufficientFunds):
                self.account.deduct(command, new_id(), now)
            return
        self.refundable.append(self.account.deduct(command, new_id(), now))
        self.expected -= amount

    @precondition(lambda self: self.refundable)
    @rule(data=st.data(), now=times)
    def refund(self, data: st.DataObject, now: datetime) -> None:
        at = data.draw(st.integers(0, len(self.refundable) - 1))
        deduction = self.refundable.pop(at)
        command = RefundDeduction("ann", deduction.request_id, "r")
        entry = self.account.refund(command, deduction, new_id(), now)
        assert entry.amount_minor == -deduction.amount_minor
        self.expected += entry.amount_minor

    @invariant()
    def the_ledger_adds_up_to_the_balance(self) -> None:
        entries = self.account.entries
        assert self.account.available_minor == self.expected >= 0
        assert self.account.available_minor == sum(entry.amount_minor for entry in entries)
        assert self.account.version == len(entries)
        assert [entry.sequence for entry in entries] == list(range(1, len(entries) + 1))

    @invariant()
    def every_refund_that_may_follow_fits_in_64_bits(self) -> None:
        refundable = -sum(deduction.amount_minor for deduction in self.refundable)
        assert self.account.charged_minor == self.expected + refundable <= INT64_MAX
        assert self.account.charges_counted

    @invariant()
    def every_entry_follows_from_the_one_before(self) -> None:
        balance, time = 0, datetime.min.replace(tzinfo=UTC)
        for entry in self.account.entries:
            balance += entry.amount_minor
            assert entry.balance_after_minor == balance
            assert entry.create_time >= time, "an account's time never goes back"
            assert (entry.refund_of is not None) == (entry.kind is Kind.REFUND)
            time = entry.create_time


TestAccountMachine = AccountMachine.TestCase


def test_charges_that_were_not_counted_are_added_up_to_the_limit() -> None:
    account = Account(ANN, 5, version=3, charged_minor=7, charged_at_version=1)
    assert not account.charges_counted
    account.count_charges(20)
    assert (account.charged_minor, account.charged_at_version) == (27, 3)
    beyond = Account(ANN, 5, version=9, charged_minor=7, charged_at_version=1)
    beyond.count_charges(INT64_MAX)
    assert beyond.charged_minor == INT64_MAX
    with pytest.raises(BalanceLimitExceeded):
        beyond.charge(ChargeBalance("ann", won(1), "c"), new_id(), EPOCH)


def test_the_digest_covers_the_content() -> None:
    one = DeductBalance("ann", won(1), "d", "order")
    assert one.digest == DeductBalance("ann", won(1), "other-id", "order").digest
    others = {
        DeductBalance("ann", won(2), "d", "order").digest,
        DeductBalance("ann", Money("USD", 1), "d", "order").digest,
        DeductBalance("ann", won(1), "d", None).digest,
        DeductBalance("ann", won(1), "d", "other").digest,
    }
    assert len(others | {one.digest}) == 5
