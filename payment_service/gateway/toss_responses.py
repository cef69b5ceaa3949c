"""The meaning of Toss Payments' responses: pure functions from an untrusted body to an outcome.

Codes and statuses are those of Toss' reference (docs.tosspayments.com/reference/error-codes).
A code that is in no table here is ``Unknown``: treating a charged payment as declined costs the
customer money, another call costs little. Two that are easily misread:

- PROVIDER_ERROR comes with 400, not 5xx, and still leaves the outcome open;
- card declines come with 400 as well as 403, and so do faults of Tally's own credentials: the code
  decides, not the status.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

from common.money import Money
from payment_service.gateway.outcomes import (
    Cancelled,
    CancelOutcome,
    Charge,
    Confirmed,
    ConfirmOutcome,
    Declined,
    FindOutcome,
    Mismatch,
    NotCancellable,
    NotFound,
    PartlyCancelled,
    Refund,
    Rejected,
    Unknown,
    Unsupported,
)


@dataclass(frozen=True, slots=True)
class Response:
    """An HTTP response whose body was a JSON object of bounded size."""

    status: int
    body: dict[str, Any]

    @property
    def error_code(self) -> str | None:
        """The error's code; None if the response is not an error in Toss' format."""
        return None if self.status == _OK else _code_in(self.body)

    @property
    def client_error_code(self) -> str | None:
        """The code of a 4xx: only these statuses say that the call was refused."""
        return self.error_code if 400 <= self.status < 500 else None


ALREADY_PROCESSED: Final = "ALREADY_PROCESSED_PAYMENT"
ALREADY_CANCELED: Final = "ALREADY_CANCELED_PAYMENT"
NOT_FOUND: Final = "NOT_FOUND_PAYMENT"


def _codes(text: str) -> frozenset[str]:
    return frozenset(text.split())


_BANK_DECLINES: Final = _codes("""
    REJECT_CARD_PAYMENT REJECT_CARD_COMPANY REJECT_ACCOUNT_PAYMENT REJECT_TOSSPAY_INVALID_ACCOUNT
    INVALID_REJECT_CARD INVALID_STOPPED_CARD INVALID_CARD_EXPIRATION INVALID_CARD_NUMBER
    INVALID_CARD_LOST_OR_STOLEN INVALID_CARD_INSTALLMENT_PLAN INVALID_PASSWORD
    INVALID_ACCOUNT_INFO_RE_REGISTER RESTRICTED_TRANSFER_ACCOUNT NOT_ALLOWED_POINT_USE
    NOT_SUPPORTED_INSTALLMENT_PLAN_CARD_OR_MERCHANT NOT_SUPPORTED_MONTHLY_INSTALLMENT_PLAN
    NOT_AVAILABLE_BANK NOT_AVAILABLE_PAYMENT FDS_ERROR
""")
_LIMITS_EXCEEDED: Final = _codes("""
    EXCEED_MAX_CARD_INSTALLMENT_PLAN EXCEED_MAX_DAILY_PAYMENT_COUNT EXCEED_MAX_PAYMENT_AMOUNT
    EXCEED_MAX_ONE_DAY_WITHDRAW_AMOUNT EXCEED_MAX_ONE_TIME_WITHDRAW_AMOUNT EXCEED_MAX_ONE_DAY_AMOUNT
    EXCEED_MAX_MONTHLY_PAYMENT_AMOUNT EXCEED_MAX_AMOUNT EXCEED_MAX_AUTH_COUNT BELOW_MINIMUM_AMOUNT
""")
# The key does not exist, its session expired, the order was paid under another key, or the request
# does not match the key: this payment can never be charged.
_IMPOSSIBLE: Final = _codes("""
    NOT_FOUND_PAYMENT NOT_FOUND_PAYMENT_SESSION DUPLICATED_ORDER_ID INVALID_REQUEST
""")
DECLINES: Final = _BANK_DECLINES | _LIMITS_EXCEEDED | _IMPOSSIBLE

TALLY_FAULTS: Final = _codes("""
    UNAUTHORIZED_KEY INVALID_API_KEY INCORRECT_BASIC_AUTH_FORMAT FORBIDDEN_REQUEST
    INVALID_AUTHORIZE_AUTH INVALID_IDEMPOTENCY_KEY INVALID_UNREGISTERED_SUBMALL
    NOT_FOUND_TERMINAL_ID NOT_REGISTERED_BUSINESS
""")
NOT_CANCELLABLE: Final = _codes("""
    NOT_CANCELABLE_PAYMENT NOT_CANCELABLE_AMOUNT NOT_CANCELABLE_PAYMENT_FOR_DORMANT_USER
    NOT_ALLOWED_PARTIAL_REFUND EXCEED_MAX_REFUND_DUE FORBIDDEN_BANK_REFUND_REQUEST INVALID_REQUEST
    REFUND_REJECTED
""")

_REJECTING_STATUSES: Final = frozenset({401, 429})
_WITHOUT_CHARGE: Final = frozenset({"READY", "IN_PROGRESS", "ABORTED", "EXPIRED"})
_OK: Final = 200
_CODE: Final = re.compile(r"[A-Z0-9_]{1,100}")
_TRANSACTION_ID: Final = re.compile(r"[!-~]{1,200}")
_CODE_UNREADABLE: Final = "UNREADABLE_CODE"


def read_confirm(response: Response, charge: Charge) -> ConfirmOutcome:
    """The outcome of a confirm call. The caller looks up ALREADY_PROCESSED."""
    if response.status == _OK:
        outcome = _read_payment(response.body, charge)
        if isinstance(outcome, NotFound):
            # A confirm that succeeded cannot leave the payment unconfirmed.
            return Unknown("confirmed, but not in a final status")
        return outcome
    code = response.client_error_code
    if code in DECLINES:
        return Declined(code)
    return _read_failure(response)


def read_find(response: Response, charge: Charge) -> FindOutcome:
    """The outcome of a look-up."""
    if response.status == _OK:
        return _read_payment(response.body, charge)
    if response.client_error_code == NOT_FOUND:
        return NotFound()
    return _read_failure(response)


def read_cancel(response: Response, charge: Charge, amount: Money | None) -> CancelOutcome:
    """The outcome of a cancel call. The caller looks up ALREADY_CANCELED.

    ``amount``: what was to be given back; None for all that was left. What is left then at the
    gateway was given back by other means.
    """
    if response.status == _OK:
        outcome = _read_payment(response.body, charge)
        if isinstance(outcome, Cancelled | Declined | Mismatch):
            return outcome
        if isinstance(outcome, PartlyCancelled) and amount is not None:
            return Cancelled(outcome.transaction_id, outcome.amount, outcome.refunds)
        return Unknown("cancelled, but not in that status")
    code = response.client_error_code
    if code == NOT_FOUND:
        return NotFound()
    if code in NOT_CANCELLABLE:
        return NotCancellable(code)
    return _read_failure(response)


def _read_failure(response: Response) -> Rejected | Unknown:
    code = response.client_error_code
    if code is not None and (code in TALLY_FAULTS or response.status in _REJECTING_STATUSES):
        return Rejected(code)
    return Unknown(f"{response.status} {code or ''}".rstrip())


def _read_payment(body: dict[str, Any], charge: Charge) -> FindOutcome:
    """Read a payment object. Whatever it says is checked against the charge."""
    status = body.get("status")
    if isinstance(status, str) and status in _WITHOUT_CHARGE:
        # If no money was taken, it does not matter for which order the key was opened.
        same = body.get("paymentKey") == charge.payment_key
        differing: tuple[str, ...] = () if same else ("paymentKey",)
    else:
        differing = _differing(body, charge)
    if differing:
        return Mismatch(differing)
    match status:
        case "CANCELED" if body.get("approvedAt", "") is None:
            # A virtual account that was closed before a deposit: nothing was ever taken.
            return Declined(status)
        case "DONE" | "CANCELED" | "PARTIAL_CANCELED":
            return _read_taken(body, charge)
        case "ABORTED" | "EXPIRED":
            return Declined(_failure_code(body) or status)
        case "READY" | "IN_PROGRESS":
            return NotFound()
        case str() if _CODE.fullmatch(status):
            return Unsupported(status)
        case _:
            return Unknown("a payment without a readable status")


def _read_taken(
    body: dict[str, Any], charge: Charge
) -> Confirmed | Cancelled | PartlyCancelled | Mismatch:
    """Read a payment whose money was taken; perhaps some of it was given back."""
    transaction_id = body.get("lastTransactionKey")
    if not isinstance(transaction_id, str) or not _TRANSACTION_ID.fullmatch(transaction_id):
        return Mismatch(("lastTransactionKey",))
    amount_minor, balance = charge.amount.amount_minor, body.get("balanceAmount")
    # The type counts too: True == 1 and 1000.0 == 1000, and neither is an amount.
    if type(balance) is not int:
        return Mismatch(("balanceAmount",))
    refunds = _read_refunds(body, amount_minor - balance)
    match body["status"]:
        case "DONE" if balance == amount_minor:
            return Confirmed(transaction_id, charge.amount)
        case "CANCELED" if balance == 0:
            return Cancelled(transaction_id, charge.amount, refunds)
        case "PARTIAL_CANCELED" if 0 < balance < amount_minor:
            refunded_minor = amount_minor - balance
            return PartlyCancelled(transaction_id, charge.amount, refunded_minor, refunds)
        case _:
            return Mismatch(("balanceAmount",))


def _read_refunds(body: dict[str, Any], refunded_minor: int) -> tuple[Refund, ...]:
    """The refunds that the payment lists; empty if they are not exactly what was refunded."""
    listed = body.get("cancels")
    if not isinstance(listed, list):
        return ()
    refunds = []
    for one in listed:
        amount_minor = one.get("cancelAmount") if isinstance(one, dict) else None
        if type(amount_minor) is not int or amount_minor <= 0:
            return ()
        reason = one.get("cancelReason")
        refunds.append(Refund(amount_minor, reason if isinstance(reason, str) else ""))
    whole = sum(refund.amount_minor for refund in refunds) == refunded_minor
    return tuple(refunds) if whole else ()


def _differing(body: dict[str, Any], charge: Charge) -> tuple[str, ...]:
    expected = {
        "paymentKey": charge.payment_key,
        "orderId": charge.order_id,
        "currency": charge.amount.currency_code,
    }
    differing = [name for name, value in expected.items() if body.get(name) != value]
    if not _is_amount(body.get("totalAmount"), charge.amount.amount_minor):
        differing.append("totalAmount")
    return tuple(differing)


def _is_amount(found: object, expected_minor: int) -> bool:
    # The type counts too: True == 1 and 1000.0 == 1000, and neither is an amount.
    return type(found) is int and found == expected_minor


def _failure_code(body: dict[str, Any]) -> str | None:
    failure = body.get("failure")
    if not isinstance(failure, dict):
        return None
    return _code_in(failure) or _CODE_UNREADABLE


def _code_in(found: dict[str, Any]) -> str | None:
    code = found.get("code")
    return code if isinstance(code, str) and _CODE.fullmatch(code) else None
