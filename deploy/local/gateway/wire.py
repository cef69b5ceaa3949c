"""Requests and responses in the format of Toss Payments."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

AMOUNT_MAX: Final = 10**15
PAYMENT_KEY_CHARACTERS_MAX: Final = 200
ORDER_ID_CHARACTERS_MAX: Final = 64
REASON_CHARACTERS_MAX: Final = 200

ERRORS: Final[dict[str, tuple[int, str]]] = {
    "INVALID_REQUEST": (400, "The bad request."),
    "INVALID_IDEMPOTENCY_KEY": (400, "An idempotency key has at most 300 characters."),
    "ALREADY_PROCESSED_PAYMENT": (400, "This is a payment that has already been processed."),
    "ALREADY_CANCELED_PAYMENT": (400, "This is a payment that has already been canceled."),
    "UNAUTHORIZED_KEY": (401, "Unauthorized secret key."),
    "REJECT_CARD_PAYMENT": (403, "Over the limit or out of balance."),
    "REJECT_CARD_COMPANY": (403, "Payment confirm is rejected."),
    "NOT_CANCELABLE_PAYMENT": (403, "This payment can not be canceled."),
    "NOT_CANCELABLE_AMOUNT": (403, "This amount can not be canceled."),
    "NOT_FOUND_PAYMENT": (404, "Not found payment."),
    "IDEMPOTENT_REQUEST_PROCESSING": (409, "The first request of this key is in progress."),
    "FAILED_PAYMENT_INTERNAL_SYSTEM_PROCESSING": (
        500,
        "Payment has not been completed. Please try again.",
    ),
}


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP response; ``fresh`` if this very call made the record that it returns."""

    status: int
    body: dict[str, Any]
    fresh: bool = False


@dataclass(frozen=True, slots=True)
class Confirm:
    """The body of a confirm call; amounts in minor units."""

    payment_key: str
    order_id: str
    amount: int
    currency: str


@dataclass(frozen=True, slots=True)
class Cancel:
    """The body of a cancel call; without an amount, all that is left is cancelled."""

    reason: str
    amount: int | None


class BadRequestError(Exception):
    """The body does not have the format of the protocol."""


def error(code: str) -> Reply:
    """The error response with that code."""
    status, message = ERRORS[code]
    return Reply(status, {"code": code, "message": message})


def read_confirm(raw: bytes) -> Confirm:
    """Parse a confirm body. The real protocol has no currency; without one it is KRW."""
    body = _object(raw)
    currency = _text(body.get("currency", "KRW"), 3)
    if len(currency) != 3 or not currency.isascii() or not currency.isupper():
        raise BadRequestError
    return Confirm(
        payment_key=_text(body.get("paymentKey"), PAYMENT_KEY_CHARACTERS_MAX),
        order_id=_text(body.get("orderId"), ORDER_ID_CHARACTERS_MAX),
        amount=_amount(body.get("amount")),
        currency=currency,
    )


def read_cancel(raw: bytes) -> Cancel:
    """Parse a cancel body."""
    body = _object(raw)
    amount = body.get("cancelAmount")
    return Cancel(
        reason=_text(body.get("cancelReason"), REASON_CHARACTERS_MAX),
        amount=None if amount is None else _amount(amount),
    )


def _object(raw: bytes) -> dict[str, Any]:
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as broken:
        raise BadRequestError from broken
    if not isinstance(body, dict):
        raise BadRequestError
    return body


def _text(value: object, characters_max: int) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= characters_max:
        raise BadRequestError
    return value


def _amount(value: object) -> int:
    if type(value) is not int or not 1 <= value <= AMOUNT_MAX:
        raise BadRequestError
    return value
