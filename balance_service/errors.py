"""The refusals of the balance service; one without a code is FAILED_PRECONDITION."""

from __future__ import annotations

from common.errors import Code, NotFound, QuotaViolation, Refusal


class AccountNotFound(Refusal, code=Code.NOT_FOUND, reason="ACCOUNT_NOT_FOUND"):
    """The user has no account in this currency; it begins with the first charge."""


class LedgerEntryNotFound(NotFound, reason="LEDGER_ENTRY_NOT_FOUND"):
    """The user has no ledger entry with this id."""


class InsufficientFunds(Refusal, reason="INSUFFICIENT_FUNDS"):
    """The account holds less than the amount."""

    def __init__(self, *, user_id: str, currency_code: str, available: int, asked: int) -> None:
        super().__init__(user_id=user_id, currency_code=currency_code)
        short = f"{available} {currency_code} minor units are available, {asked} were asked for"
        self.quota = (QuotaViolation(f"account:{user_id}:{currency_code}", short),)


class BalanceLimitExceeded(Refusal, reason="BALANCE_LIMIT_EXCEEDED"):
    """The balance would exceed 10^18 minor units, or the sum of all its charges 2^63 - 1."""


class DeductionCancelled(Refusal, reason="DEDUCTION_CANCELLED"):
    """This deduction was refunded or cancelled and cannot happen any more."""
