"""What Toss Payments' answers mean: pure functions from an untrusted body to an outcome.

Codes and statuses are those of Toss' reference (docs.tosspayments.com/reference/error-codes).
A code that is in no table here is ``Unknown``: taking a charged payment for a declined one costs
the customer money, asking once more costs a call. Two that are easily misread:

- PROVIDER_ERROR comes with 400, not 5xx, and leaves the outcome open all the same;
- card declines come with 400 as well as 403, and so do faults of our own credentials: the code
  decides, not the status.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

from common.money import Money
from payment_service.gateway import (
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
    Rejected,
    Unknown,
)


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer whose body was a JSON object of bearable size."""

    status: int
    body: dict[str, Any]


ALREADY_PROCESSED: Final = "ALREADY_PROCESSED_PAYMENT"
ALREADY_CANCELED: Final = "ALREADY_CANCELED_PAYMENT"
NOT_FOUND: Final = "NOT_FOUND_PAYMENT"

DECLINES: Final = frozenset(
    {
        # The card, the account or its bank says no.
        "REJECT_CARD_PAYMENT",
        "REJECT_CARD_COMPANY",
        "REJECT_ACCOUNT_PAYMENT",
        "REJECT_TOSSPAY_INVALID_ACCOUNT",
        "INVALID_REJECT_CARD",
        "INVALID_STOPPED_CARD",
        "INVALID_CARD_EXPIRATION",
        "INVALID_CARD_NUMBER",
        "INVALID_CARD_LOST_OR_STOLEN",
        "INVALID_CARD_INSTALLMENT_PLAN",
        "INVALID_PASSWORD",
        "INVALID_ACCOUNT_INFO_RE_REGISTER",
        "RESTRICTED_TRANSFER_ACCOUNT",
        "NOT_ALLOWED_POINT_USE",
        "NOT_SUPPORTED_INSTALLMENT_PLAN_CARD_OR_MERCHANT",
        "NOT_SUPPORTED_MONTHLY_INSTALLMENT_PLAN",
        "NOT_AVAILABLE_BANK",
        "NOT_AVAILABLE_PAYMENT",
        "FDS_ERROR",
        # A limit of the customer's.
        "EXCEED_MAX_CARD_INSTALLMENT_PLAN",
        "EXCEED_MAX_DAILY_PAYMENT_COUNT",
        "EXCEED_MAX_PAYMENT_AMOUNT",
        "EXCEED_MAX_ONE_DAY_WITHDRAW_AMOUNT",
        "EXCEED_MAX_ONE_TIME_WITHDRAW_AMOUNT",
        "EXCEED_MAX_ONE_DAY_AMOUNT",
        "EXCEED_MAX_MONTHLY_PAYMENT_AMOUNT",
        "EXCEED_MAX_AMOUNT",
        "EXCEED_MAX_AUTH_COUNT",
        "BELOW_MINIMUM_AMOUNT",
        # The payment as asked for can never be taken: no such key, its session ran out, the
        # order was paid under another key, or the request does not fit the key.
        "NOT_FOUND_PAYMENT",
        "NOT_FOUND_PAYMENT_SESSION",
        "DUPLICATED_ORDER_ID",
        "INVALID_REQUEST",
    }
)

OUR_FAULTS: Final = frozenset(
    {
        "UNAUTHORIZED_KEY",
        "INVALID_API_KEY",
        "INCORRECT_BASIC_AUTH_FORMAT",
        "FORBIDDEN_REQUEST",
        "INVALID_AUTHORIZE_AUTH",
        "INVALID_IDEMPOTENCY_KEY",
        "INVALID_UNREGISTERED_SUBMALL",
        "NOT_FOUND_TERMINAL_ID",
        "NOT_REGISTERED_BUSINESS",
    }
)

NOT_CANCELLABLE: Final = frozenset(
    {
        "NOT_CANCELABLE_PAYMENT",
        "NOT_CANCELABLE_AMOUNT",
        "NOT_CANCELABLE_PAYMENT_FOR_DORMANT_USER",
        "NOT_ALLOWED_PARTIAL_REFUND",
        "EXCEED_MAX_REFUND_DUE",
        "FORBIDDEN_BANK_REFUND_REQUEST",
        "INVALID_REQUEST",
        "REFUND_REJECTED",
    }
)

_REFUSING_STATUSES: Final = frozenset({401, 429})
_TOOK_NOTHING: Final = frozenset({"READY", "IN_PROGRESS", "ABORTED", "EXPIRED"})
_OK: Final = 200
_CODE: Final = re.compile(r"[A-Z0-9_]{1,100}")
_TRANSACTION_ID: Final = re.compile(r"[!-~]{1,200}")
_CODE_UNREADABLE: Final = "UNREADABLE_CODE"


def error_code(answer: Answer) -> str | None:
    """Return the error's code, or None when the answer is no error of Toss' form."""
    if answer.status == _OK:
        return None
    code = answer.body.get("code")
    return code if isinstance(code, str) and _CODE.fullmatch(code) else None


def read_confirm(answer: Answer, charge: Charge) -> ConfirmOutcome:
    """Return what a confirm call did (ALREADY_PROCESSED is the caller's to look up)."""
    if answer.status == _OK:
        outcome = _read_payment(answer.body, charge)
        if isinstance(outcome, NotFound):
            # A confirm that succeeded cannot leave the payment unconfirmed.
            return Unknown("confirmed, yet not in a final status")
        return outcome
    code = error_code(answer)
    if code in DECLINES and _client_error(answer):
        return Declined(code)
    return _read_failure(answer)


def read_find(answer: Answer, charge: Charge) -> FindOutcome:
    """Return what became of a payment."""
    if answer.status == _OK:
        return _read_payment(answer.body, charge)
    if error_code(answer) == NOT_FOUND and _client_error(answer):
        return NotFound()
    return _read_failure(answer)


def read_cancel(answer: Answer, charge: Charge) -> CancelOutcome:
    """Return what a cancel call did (ALREADY_CANCELED is the caller's to look up)."""
    if answer.status == _OK:
        outcome = _read_payment(answer.body, charge)
        match outcome:
            case Cancelled() | Mismatch():
                return outcome
            case _:
                return Unknown("cancelled, yet not in the status of it")
    code = error_code(answer)
    if code == NOT_FOUND and _client_error(answer):
        return NotFound()
    if code in NOT_CANCELLABLE and _client_error(answer):
        return NotCancellable(code)
    return _read_failure(answer)


def _read_failure(answer: Answer) -> Rejected | Unknown:
    code = error_code(answer)
    if code is not None and _client_error(answer):
        if code in OUR_FAULTS or answer.status in _REFUSING_STATUSES:
            return Rejected(code)
        return Unknown(f"answered {answer.status} {code}")
    return Unknown(f"answered {answer.status}")


def _client_error(answer: Answer) -> bool:
    return 400 <= answer.status < 500


def _read_payment(
    body: dict[str, Any], charge: Charge
) -> Confirmed | Cancelled | Declined | NotFound | Mismatch | Unknown:
    """Read a payment object, trusting nothing in it that the charge does not bear out."""
    status = body.get("status")
    if isinstance(status, str) and status in _TOOK_NOTHING:
        # What the key was opened for does not matter where no money was taken for it.
        same = body.get("paymentKey") == charge.payment_key
        differing: tuple[str, ...] = () if same else ("paymentKey",)
    else:
        differing = _differing(body, charge)
    if differing:
        return Mismatch(differing)
    match status:
        case "DONE" | "CANCELED":
            return _read_settled(body, charge)
        case "ABORTED" | "EXPIRED":
            return Declined(_failure_code(body) or status)
        case "READY" | "IN_PROGRESS":
            return NotFound()
        case "PARTIAL_CANCELED":
            # Tally gives back all or nothing: somebody else has been at this payment.
            return Mismatch(("balanceAmount",))
        case _:
            return Unknown("a payment in a status that is not known")


def _read_settled(body: dict[str, Any], charge: Charge) -> Confirmed | Cancelled | Mismatch:
    transaction_id = body.get("lastTransactionKey")
    if not isinstance(transaction_id, str) or not _TRANSACTION_ID.fullmatch(transaction_id):
        return Mismatch(("lastTransactionKey",))
    done = body["status"] == "DONE"
    if not _is_amount(body.get("balanceAmount"), charge.amount.amount_minor if done else 0):
        return Mismatch(("balanceAmount",))
    amount = Money(charge.amount.currency_code, charge.amount.amount_minor)
    return Confirmed(transaction_id, amount) if done else Cancelled(transaction_id, amount)


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
    # By type as well: True == 1 and 1000.0 == 1000, and neither is an amount.
    return type(found) is int and found == expected_minor


def _failure_code(body: dict[str, Any]) -> str | None:
    failure = body.get("failure")
    if not isinstance(failure, dict):
        return None
    code = failure.get("code")
    return code if isinstance(code, str) and _CODE.fullmatch(code) else _CODE_UNREADABLE
