"""All views, in the order in which a reader needs them."""

from __future__ import annotations

from typing import Final

from deploy.monitoring.views import contention, money, services

VIEWS: Final = (services.VIEW, money.VIEW, contention.VIEW)
