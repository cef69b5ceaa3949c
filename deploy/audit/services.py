"""What is checked within the database of each service."""

from __future__ import annotations

from typing import Final

from deploy.audit import balance, coupon, order, payment
from deploy.audit.checks import ServiceChecks

SERVICES: Final[dict[str, ServiceChecks]] = {
    "balance": balance.SERVICE,
    "coupon": coupon.SERVICE,
    "order": order.SERVICE,
    "payment": payment.SERVICE,
}
