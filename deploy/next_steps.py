"""What a caller does after a refusal, by reason: the last column of docs/errors.md."""

from __future__ import annotations

from typing import Final

_REPEAT: Final = "Repeat the call after RetryInfo, with the same request_id."
_NEW_KEY: Final = "Let the customer pay anew, with a new payment_key and a new request_id."

NEXT_STEPS: Final = {
    # -- of any method ---------------------------------------------------------------------------
    "INVALID_FIELD": (
        "Correct the fields that BadRequest names. `request` is the message itself: malformed, or "
        "above 64 KiB (a bulk call's: 256 KiB)."
    ),
    "OVERLOADED": (
        "Repeat the call after RetryInfo, with the same request_id. A bound of the replica is "
        "reached ([limits](guides/limits.md)), and nothing was done, except that a CancelPayment "
        "may be stored, and that a PayOrder or CancelOrder whose saga another replica took over "
        "may have had its effect."
    ),
    "DATABASE_UNAVAILABLE": "Repeat the call with the same request_id: it may have had its effect.",
    "REPLICA_NOT_READY": "Repeat the call: another replica answers. Nothing was done.",
    "PAUSED": "Tell your user, and try again after RetryInfo; channels do not. Nothing was done.",
    "TOKEN_MISSING": "Send a token: `authorization: Bearer …` ([identity](guides/identity.md)).",
    "TOKEN_INVALID": "Get another token; `problem` in the metadata says what is wrong with it.",
    "TOKEN_EXPIRED": "Repeat the call, or open the stream again, with a new token.",
    "NOT_PERMITTED": "Nothing: the caller may not do this ([access](access.md)).",
    "RATE_LIMITED": (
        "Repeat the call after RetryInfo, with the same request_id, and call less often "
        "([limits](guides/limits.md)). Nothing was done."
    ),
    "REPLICA_STOPPING": "Open the stream again: another replica answers.",
    "DEADLINE_TOO_SHORT": "Give the call more time. Nothing was done.",
    "DEADLINE_EXCEEDED": "Repeat the call with the same request_id: it may have had its effect.",
    "INTERNAL": "Report the error_id in the metadata: the log has more under it.",
    "REQUEST_ID_REUSED": "Use a new request_id for each new intent.",
    "REQUEST_IN_PROGRESS": _REPEAT,
    "CONFLICT_RETRIES_EXHAUSTED": "Repeat the call after RetryInfo: nothing was done.",
    "INVALID_PAGE_TOKEN": "Begin the list again, without a page_token.",
    "CURRENCY_MISMATCH": "Use one currency for all amounts.",
    "PEER_UNAVAILABLE": "Repeat the call with the same request_id.",
    # -- balance -----------------------------------------------------------------------------------
    "ACCOUNT_NOT_FOUND": "Charge the account first, in this currency.",
    "LEDGER_ENTRY_NOT_FOUND": "Check the entry_id and the user_id.",
    "INSUFFICIENT_FUNDS": "Charge the account, or ask for less: QuotaFailure has the figures.",
    "BALANCE_LIMIT_EXCEEDED": "Charge less, or nothing more to this account.",
    "DEDUCTION_CANCELLED": "Nothing: the deduction is undone. A new one needs a new request_id.",
    # -- coupon ------------------------------------------------------------------------------------
    "CAMPAIGN_NOT_FOUND": "Check the campaign_id.",
    "COUPON_NOT_FOUND": "Check the coupon_id and the user_id.",
    "COUPON_ALREADY_ISSUED": "Use the coupon that the metadata names, if it does.",
    "CAMPAIGN_NOT_OPEN": "Wait for the campaign's start_time; after its end_time, give up.",
    "COUPON_SOLD_OUT": "Tell the user. It is final.",
    "CAMPAIGN_QUEUED": "Call QueueCoupon.",
    "TICKET_NOT_FOUND": "Check the ticket_id and the user_id.",
    "TICKET_LOST": "Call QueueCoupon with the request_id of the ticket.",
    "QUEUE_FULL": _REPEAT,
    "COUPON_NOT_USABLE": "Pay without this coupon.",
    "COUPON_EXPIRED": "Pay without this coupon.",
    "COUPON_WITHOUT_EFFECT": "Pay without this coupon.",
    "ORDER_AMOUNT_TOO_SMALL": "Pay without this coupon, or order more.",
    "REDEMPTION_CANCELLED": "Nothing: the redemption is undone. A new one needs a new request_id.",
    # -- order -------------------------------------------------------------------------------------
    "PRODUCT_NOT_FOUND": "Check the product_id.",
    "ORDER_NOT_FOUND": "Check the order_id and the user_id.",
    "SAGA_NOT_FOUND": "Check the saga_id or the order_id.",
    "OPEN_ORDERS_LIMIT": "Pay or cancel an order first: QuotaFailure has the figures.",
    "OUT_OF_STOCK": "Order less: QuotaFailure names every product that is short.",
    "PRODUCT_SEATED": "Name the seats, or add stock with AddSeats.",
    "PRODUCT_NOT_SEATED": "Name no seats, or give seats to a product created with stock 0.",
    "SEAT_NOT_FOUND": "Name seats that ListSeats returns.",
    "SEAT_TAKEN": "Let the user choose other seats: QuotaFailure names those that are taken.",
    "SEAT_EXISTS": "Leave out the seats that QuotaFailure names.",
    "ORDER_NOT_PAYABLE": "Read the order: it is paid, cancelled or expired. Then create a new one.",
    "ORDER_NOT_CANCELLABLE": "Nothing: an expired order holds nothing.",
    "PAYMENT_KEY_REQUIRED": "Pay with a payment_key too, or all of it from the balance.",
    "AMOUNT_EXCEEDS_DUE": "Lower balance_amount to what is due.",
    "CART_CHANGED": "Read the cart, show it, and decide again.",
    "SAGA_NOT_RETRYABLE": "Read the saga: it may have ended ([attention](guides/attention.md)).",
    # -- payment -----------------------------------------------------------------------------------
    "PAYMENT_NOT_FOUND": "Check the payment_id and the user_id.",
    "PAYMENT_KEY_USED": _NEW_KEY,
    "PAYMENT_DECLINED": _NEW_KEY,
    "PAYMENT_METHOD_NOT_SUPPORTED": _NEW_KEY,
    "PAYMENT_CANCELLED": _NEW_KEY,
    "PAYMENT_IN_PROGRESS": _REPEAT,
    "PAYMENT_OUTCOME_DIFFERS": "Read the payment, and settle it by what the gateway reports.",
    "PAYMENT_OUTCOME_UNKNOWN": "Repeat the call with the same request_id: it tells the outcome.",
    "GATEWAY_UNAVAILABLE": "Repeat the call after RetryInfo: the gateway was not reached.",
    "REFUND_REFUSED": "A person settles the payment ([attention](guides/attention.md)).",
}

_PUT_BACK: Final = "Everything is put back: pay anew, with a new request_id."

FINAL: Final = {"PAYMENT_OUTCOME_UNKNOWN": _PUT_BACK, "GATEWAY_UNAVAILABLE": _PUT_BACK}
"""Instead, where the refusal has no RetryInfo: it ends an attempt to pay."""
