"""What each method with a user_id replies to a user without anything."""

from __future__ import annotations

from typing import Final

REFUSED: Final = {
    **dict.fromkeys(("DeductBalance", "GetBalance", "ListLedgerEntries"), "ACCOUNT_NOT_FOUND"),
    "GetLedgerEntry": "LEDGER_ENTRY_NOT_FOUND",
    **dict.fromkeys(("GetCoupon", "RedeemCoupon"), "COUPON_NOT_FOUND"),
    **dict.fromkeys(("PayOrder", "CancelOrder", "GetOrder", "WatchOrder"), "ORDER_NOT_FOUND"),
    "GetPayment": "PAYMENT_NOT_FOUND",
    **dict.fromkeys(("GetTicket", "WatchTicket"), "TICKET_NOT_FOUND"),
}
"""The reason of the refusal."""
SERVED: Final = {
    *("ChargeBalance", "RefundDeduction", "IssueCoupon", "ListCoupons", "RestoreCoupon"),
    *("QueueCoupon", "GetCart", "SetCartItem", "ClearCart", "CreateOrder", "ListOrders"),
    *("ConfirmPayment", "CancelPayment", "ListPayments", "ListSagas"),
}
