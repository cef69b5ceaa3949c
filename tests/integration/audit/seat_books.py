"""Seats in the clean books: a product with three, one of each state.

| order | user | what became of it |
|-------|------|-------------------|
| G | ann | pending, with seat A-1 |
| H | bob | paid, with seat A-2; it cost nothing |
| I | ann | expired, had seat A-3 |
"""

from __future__ import annotations

from typing import Any, Final

from tests.integration.audit.books import NOW, TOMORROW, answer, completed, insert, uid
from tests.integration.audit.order_books import saga

SHOW: Final = uid(5)
G, H, I = (uid(number) for number in range(17, 20))  # noqa: E741 - the orders are letters
PAY_H: Final = uid(26)
_VERSION: Final = 9
"""That of every product in the books."""


def seats() -> str:
    """The product, its seats and the orders that name them."""
    skipped = "redeem_coupon SKIPPED, deduct_balance SKIPPED, confirm_payment SKIPPED"
    columns = "product_id stocked reserved sold seats seats_version price_minor"
    return (
        insert("products", columns, SHOW, 3, 1, 1, 3, _VERSION, 0)
        + _stocking("CREATED", "CreateProduct", "product-2", 0, 0, 1)
        + _stocking("SEATED", "AddSeats", "seats-1", 3, 3, 2)
        + _order(G, "ann", "A-1", "PENDING", "RESERVED", 7)
        + _order(H, "bob", "A-2", "PAID", "SOLD", 8)
        + _order(I, "ann", "A-3", "EXPIRED", "FREE", _VERSION)
        + saga(PAY_H, H, "bob", "COMPLETED", f"{skipped}, complete_order DONE", 0)
        + answer("PayOrder", "bob", f"pay-{PAY_H}", _body(H, "bob", "A-2") | {"state": "PAID"})
    )


def _stocking(  # noqa: PLR0917 - a row, in the order of its columns
    kind: str, method: str, request_id: str, quantity: int, stocked: int, version: int
) -> str:
    row = (SHOW, quantity, stocked, version, request_id, kind)
    columns = "product_id quantity stocked_after product_version request_id kind"
    body = completed("products", "product_id stocked version", SHOW, stocked, version)
    body["price"] = {"currency_code": "KRW", "amount_minor": 0}
    return insert("stock_entries", columns, *row) + answer(method, "", request_id, body)


_AMOUNTS: Final = (
    *("subtotal_minor", "discount_minor", "paid_by_balance_minor", "paid_by_gateway_minor"),
)


def _order(  # noqa: PLR0917 - an order and its one seat
    order_id: str, user: str, label: str, state: str, of_seat: str, version: int
) -> str:
    """An order of one seat, and the seat as it is now."""
    live = of_seat != "FREE"
    expire_time = NOW if state == "EXPIRED" else TOMORROW
    order = (order_id, user, f"create-{order_id}", state, expire_time, 0, 0, 0, 0)
    body = _body(order_id, user, label) | {"expire_time": expire_time}
    return (
        insert(
            "orders",
            f"order_id user_id request_id state expire_time {' '.join(_AMOUNTS)}",
            *order,
        )
        + insert(
            "order_items",
            "order_id product_id quantity unit_price_minor seated",
            *(order_id, SHOW, 1, 0, "true"),
        )
        + insert("order_seats", "order_id product_id label live", order_id, SHOW, label, str(live))
        + insert(
            "seats",
            "product_id label state order_id version request_id",
            *(SHOW, label, of_seat, order_id if live else None, version, "seats-1"),
        )
        + answer("CreateOrder", user, f"create-{order_id}", body)
    )


def _body(order_id: str, user: str, label: str) -> dict[str, Any]:
    """The body of the answer about a new order."""
    body = completed("orders", "order_id user_id state", order_id, user, "PENDING")
    item = {"product_id": SHOW, "quantity": 1, "unit_price_minor": 0, "seats": [label]}
    return (
        body
        | dict.fromkeys(_AMOUNTS, 0)
        | {"items": [item]}
        | dict.fromkeys(("coupon_id", "payment_id"))
    )
