"""The rules of accounts: after any commands, the ledger adds up to the balance."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

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
from common.money import AMOUNT_MAX, BALANCE_MAX, Money

ANN = AccountId("ann", "KRW")
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
amounts = st.integers(1, AMOUNT_MAX)
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

    @rule(amount=amounts, now=times)
    def charge(self, amount: int, now: datetime) -> None:
        if self.expected + amount > BALANCE_MAX:
            with pytest.raises(BalanceLimitExceeded):
                self.account.charge(ChargeBalance("ann", won(amount), "c"), new_id(), now)
            return
        self.account.charge(ChargeBalance("ann", won(amount), "c"), new_id(), now)
        self.expected += amount

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
    def every_entry_follows_from_the_one_before(self) -> None:
        balance, time = 0, datetime.min.replace(tzinfo=UTC)
        for entry in self.account.entries:
            balance += entry.amount_minor
            assert entry.balance_after_minor == balance
            assert entry.create_time >= time, "an account's time never goes back"
            assert (entry.refund_of is not None) == (entry.kind is Kind.REFUND)
            time = entry.create_time


TestAccountMachine = AccountMachine.TestCase


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
