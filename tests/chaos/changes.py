"""The same request_id with other content."""

from __future__ import annotations

from typing import Any, Final

_MONEY: Final = ("amount", "balance_amount", "fixed_discount", "order_amount")
_TEXTS: Final = ("deduct_request_id", "redeem_request_id", "payment_key", "reason")


def changed(request: Any) -> Any:
    """A copy with one field changed; None if any change would make another request of it."""
    other = type(request)()
    other.CopyFrom(request)
    fields = other.DESCRIPTOR.fields_by_name
    for name in _MONEY:
        if name in fields and other.HasField(name):
            getattr(other, name).amount_minor += 1
            return other
    for name in _TEXTS:
        if name in fields and getattr(other, name):
            setattr(other, name, f"{getattr(other, name)}-2")
            return other
    if "items" in fields and other.items[0].seats:
        other.items[0].seats[0] += "-2"
        return other
    if "items" in fields:
        other.items[0].quantity += 1
        return other
    if "stock" in fields:
        other.stock += 1
        return other
    return None
