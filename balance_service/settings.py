"""The balance service's settings: those every service has, with its own defaults."""

from __future__ import annotations

from typing import ClassVar

from common.settings import ServiceSettings
from common.urls import BindAddress


class BalanceSettings(ServiceSettings):
    service: ClassVar[str] = "balance"
    bind: BindAddress = "127.0.0.1:50051"
