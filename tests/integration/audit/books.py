"""A small clean set of books over all services, as the rows that the services would have written.

| order | user | what became of it |
|-------|------|-------------------|
| A | ann | 5,000 paid: coupon 500, balance 3,000, gateway 1,500 |
| B | bob | 2,000 paid by coupon 300, balance 1,000, gateway 700; cancelled and refunded |
| C | ann | an attempt with balance 400 and a declined card, compensated; pending |
| D | bob | being paid by balance 250 |
| E, F | ann | expired; cancelled before it was paid |

Bob deducts 100 and pays 900 directly; another direct payment of 60 is charged and still unknown.

The ids and the rows of balance and coupon are here; payments, orders, seats and shares have files
of their own.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

_NOW: Final = datetime.now(UTC)
NOW: Final = _NOW.isoformat()
"""The last heartbeat, whenever the test runs."""
BEFORE: Final = (_NOW - timedelta(hours=1)).isoformat()
_A_DAY_AGO: Final = (_NOW - timedelta(days=1)).isoformat()
TOMORROW: Final = (_NOW + timedelta(days=1)).isoformat()
A_DAY_US: Final = 86_400_000_000


def uid(number: int) -> str:
    """A UUID that is easy to recognize in a failing test."""
    return f"01900000-0000-7000-8000-{number:012d}"


PRODUCT, COUPON_A, COUPON_B, CAMPAIGN = uid(1), uid(2), uid(3), uid(4)
TICKET_B = f"{uid(6)[:14]}7{uid(6)[15:-8]}{CAMPAIGN[-8:]}"
A, B, C, D, E, F = (uid(number) for number in range(11, 17))
PAY_A, PAY_B, PAY_C, PAY_D, CANCEL_B = (uid(number) for number in range(21, 26))
PAID_A, PAID_B, DECLINED_C, DIRECT, UNKNOWN = (uid(number) for number in range(31, 36))

_NEW: Final = {"create_time": BEFORE, "update_time": NOW}
_DEFAULTS: Final[dict[str, dict[str, Any]]] = {
    "accounts": {"currency_code": "KRW", "update_time": NOW},
    "ledger_entries": {"currency_code": "KRW", "create_time": NOW},
    "answers": {"digest": ""},
    "campaigns": {"currency_code": "KRW", "name": "c", "request_id": "campaign-1"}
    | {"fixed_discount_minor": None, "min_order_minor": None, "start_time": BEFORE}
    | {"end_time": TOMORROW, "create_time": BEFORE, "coupon_lifetime_us": A_DAY_US},
    "coupons": {"campaign_id": CAMPAIGN, "issue_time": NOW, "expire_time": TOMORROW}
    | {"request_id": "issue-1", "ticket_id": None},
    "redemptions": {"currency_code": "KRW", "redeem_time": NOW},
    "payments": {"currency_code": "KRW", "gateway": "toss", "tries": 0, "version": 1, **_NEW},
    "products": {"name": "p", "currency_code": "KRW", "price_minor": 250, "version": 9, **_NEW},
    "stock_entries": {"product_id": PRODUCT, "create_time": BEFORE},
    "orders": {"currency_code": "KRW", "failure_reason": "", "version": 1, "expire_time": TOMORROW}
    | _NEW,
    "sagas": {"plan_version": 2, "epoch": 1, "lease_until": NOW, "attempts": 0}
    | {"last_error": "", "resolution_reason": "", **_NEW},
}
"""What the rows of a table have in common."""
HEARTBEAT: Final = f"""
UPDATE heartbeat
   SET runs = '{{[{_A_DAY_AGO},{NOW})}}', beat_time = '{NOW}';
"""
HOUR_PASSES: Final = """
UPDATE heartbeat SET beat_time = beat_time + interval '1 hour',
       runs = tstzmultirange(tstzrange(lower(runs), beat_time + interval '1 hour'))
"""
"""The service runs for another hour."""


def insert(table: str, columns: str, *values: Any) -> str:
    """``columns`` are separated by blanks, and completed by the table's defaults."""
    row = completed(table, columns, *values)
    literals = ", ".join(map(_literal, row.values()))
    return f"INSERT INTO {table} ({', '.join(row)}) VALUES ({literals});\n"


def completed(table: str, columns: str, *values: Any) -> dict[str, Any]:
    """The whole row, as it is in the answer about it."""
    return _DEFAULTS.get(table, {}) | dict(zip(columns.split(), values, strict=True))


def _literal(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, dict | list):
        value = json.dumps(value)
    return "'" + str(value).replace("'", "''") + "'"


def answer(method: str, scope: str, request_id: str, body: Any, state: str = "ANSWERED") -> str:
    text = None if state == "CANCELLED" else json.dumps(body)
    columns = "method scope request_id state body"
    return insert("answers", columns, method, scope, request_id, state, text)


# -- balance ---------------------------------------------------------------------------------------


def balance() -> str:
    """Charges, deductions of sagas and a direct one, refunds."""
    ann = [
        ("CHARGE", 10_000, "charge-1", None, None),
        ("DEDUCT", -3_000, f"{PAY_A}:deduct_balance", A, None),
        ("DEDUCT", -400, f"{PAY_C}:deduct_balance", C, None),
        ("REFUND", 400, f"{PAY_C}:deduct_balance:undo", C, f"{PAY_C}:deduct_balance"),
    ]
    bob = [
        ("CHARGE", 5_000, "charge-1", None, None),
        ("DEDUCT", -1_000, f"{PAY_B}:deduct_balance", B, None),
        ("DEDUCT", -100, "direct-1", None, None),
        ("REFUND", 1_000, f"{CANCEL_B}:refund_deduction", B, f"{PAY_B}:deduct_balance"),
        ("DEDUCT", -250, f"{PAY_D}:deduct_balance", D, None),
    ]
    # Eve's account is about to be opened, and her deduction was cancelled before it arrived.
    eve = answer("DeductBalance", "eve", "never-came", None, "CANCELLED")
    eve += answer("RefundDeduction", "eve", "refund-of-nothing", None)
    return _account("ann", 100, ann) + _account("bob", 200, bob) + _account("eve", 300, []) + eve


_METHODS = {"CHARGE": "ChargeBalance", "DEDUCT": "DeductBalance", "REFUND": "RefundDeduction"}


def _account(
    user: str, first_id: int, entries: Sequence[tuple[str, int, str, str | None, str | None]]
) -> str:
    script, available = "", 0
    undone = {refund_of for *_, refund_of in entries}
    for sequence, (kind, amount, request_id, order_id, refund_of) in enumerate(entries, 1):
        available += amount
        entry = (uid(first_id + sequence), sequence, amount, available)
        request = (kind, request_id, order_id, refund_of)
        script += ledger_entry(user, entry, *request)
        state = "CANCELLED" if request_id in undone else "ANSWERED"
        script += answer(_METHODS[kind], user, request_id, entry_body(user, entry, *request), state)
    charged = sum(amount for kind, amount, *_ in entries if kind == "CHARGE")
    columns = "user_id available_minor version charged_minor charged_at_version"
    values = (user, available, len(entries), charged, len(entries))
    return script + insert("accounts", columns, *values)


Entry = tuple[str, int, int, int]
"""Its id, sequence, amount, and the balance after it."""
_ENTRY_COLUMNS: Final = "entry_id sequence amount_minor balance_after_minor"


def ledger_entry(user: str, entry: Entry, *request: str | None) -> str:
    """``request``: kind, request_id, order_id and refund_of."""
    columns = f"user_id {_ENTRY_COLUMNS} kind request_id order_id refund_of"
    return insert("ledger_entries", columns, user, *entry, *request)


def entry_body(user: str, entry: Entry, *request: str | None) -> dict[str, Any]:
    """The body of an entry's answer."""
    columns = f"{_ENTRY_COLUMNS} kind request_id order_id refund_of"
    row = completed("ledger_entries", columns, *entry, *request)
    return row | {"account_id": [user, row.pop("currency_code")]}


# -- coupon ----------------------------------------------------------------------------------------


def coupon() -> str:
    """A campaign with two coupons, one redeemed, and one issued by ticket and restored."""
    columns = "campaign_id percent_discount max_discount_minor quantity issued issued_by_ticket"
    values = (CAMPAIGN, 15, 500, 3, 2, 1)
    row = completed("campaigns", columns, *values)
    body = row | {"terms": row, "issued": 0}
    restored = _coupon_row(COUPON_B, "bob", 2, TICKET_B) | {"as_of": NOW}
    return (
        insert("campaigns", columns, *values)
        + answer("CreateCampaign", "", "campaign-1", body)
        + _coupon((COUPON_A, "ann", 1, None), f"{PAY_A}:redeem_coupon", A, NOW)
        + _coupon((COUPON_B, "bob", 2, TICKET_B), None, None, None)
        + redemption("ann", PAY_A, COUPON_A, order_id=A, order_amount=5_000, discount=500)
        + redemption(
            "bob", PAY_B, COUPON_B, order_id=B, order_amount=2_000, discount=300, restored=True
        )
        + answer("RestoreCoupon", "bob", "restore-1", {"coupon": restored})
    )


_COUPON_COLUMNS: Final = "coupon_id user_id issue_number ticket_id"


def _coupon_row(*coupon: str | int | None) -> dict[str, Any]:
    return completed("coupons", _COUPON_COLUMNS, *coupon)


def _coupon(coupon: tuple[str, str, int, str | None], *use: str | None) -> str:
    columns = f"{_COUPON_COLUMNS} redeem_request_id order_id redeem_time"
    _, user, _, ticket_id = coupon
    method = "IssueCoupon" if ticket_id is None else "QueueCoupon"
    return insert("coupons", columns, *coupon, *use) + answer(
        method, user, "issue-1", _coupon_row(*coupon)
    )


def redemption(
    user: str,
    saga_id: str,
    coupon_id: str,
    *,
    order_id: str,
    order_amount: int,
    discount: int,
    restored: bool = False,
) -> str:
    request_id = f"{saga_id}:redeem_coupon"
    return insert(
        "redemptions",
        "user_id request_id coupon_id order_id order_amount_minor discount_minor"
        " restore_request_id restore_time",
        *(user, request_id, coupon_id, order_id, order_amount, discount),
        *(("restore-1", NOW) if restored else (None, None)),
    ) + answer(
        "RedeemCoupon",
        user,
        request_id,
        redemption_body(coupon_id, order_id, discount),
        "CANCELLED" if restored else "ANSWERED",
    )


def redemption_body(coupon_id: str, order_id: str, discount: int) -> dict[str, Any]:
    """The body of a redemption's answer."""
    return {
        "coupon": {"coupon_id": coupon_id, "order_id": order_id},
        "discount": {"currency_code": "KRW", "amount_minor": discount},
    }
