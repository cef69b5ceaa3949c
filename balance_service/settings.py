"""The balance service's settings: those every service has, with its own defaults."""

from __future__ import annotations

from typing import ClassVar

from common.settings import ServiceSettings
from common.urls import BindAddress


class BalanceSettings(ServiceSettings):
    service: ClassVar[str] = "balance"
    saga_methods: ClassVar[tuple[str, ...]] = (
        "tally.balance.v1.BalanceService/DeductBalance",
        "tally.balance.v1.BalanceService/RefundDeduction",
        "tally.balance.v1.BalanceService/BatchWrite",
    )
    bind: BindAddress = "127.0.0.1:50051"
