"""The refusals of the balance service.

├── AccountNotFound         NOT_FOUND             ACCOUNT_NOT_FOUND
├── LedgerEntryNotFound     NOT_FOUND             LEDGER_ENTRY_NOT_FOUND
├── InsufficientFunds       FAILED_PRECONDITION   INSUFFICIENT_FUNDS
├── BalanceLimitExceeded    FAILED_PRECONDITION   BALANCE_LIMIT_EXCEEDED
└── DeductionCancelled      FAILED_PRECONDITION   DEDUCTION_CANCELLED
"""

from __future__ import annotations

from common.errors import Code, NotFound, QuotaViolation, Refusal


class AccountNotFound(Refusal):
    """The user has no account in this currency; it begins with the first charge."""

    code = Code.NOT_FOUND
    reason = "ACCOUNT_NOT_FOUND"


class LedgerEntryNotFound(NotFound):
    """The user has no ledger entry with this id."""

    reason = "LEDGER_ENTRY_NOT_FOUND"


class InsufficientFunds(Refusal):
    """The account holds less than the amount."""

    reason = "INSUFFICIENT_FUNDS"

    def __init__(self, *, user_id: str, currency_code: str, available: int, asked: int) -> None:
        super().__init__(user_id=user_id, currency_code=currency_code)
        short = f"{available} {currency_code} minor units are available, {asked} were asked for"
        self.quota = (QuotaViolation(f"account:{user_id}:{currency_code}", short),)


class BalanceLimitExceeded(Refusal):
    """The balance would exceed its limit of 10^18 minor units."""

    reason = "BALANCE_LIMIT_EXCEEDED"


class DeductionCancelled(Refusal):
    """This deduction was refunded or cancelled and cannot happen any more."""

    reason = "DEDUCTION_CANCELLED"
