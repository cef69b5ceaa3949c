"""The order service's settings: those every service has, the peers', and its own times."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field

from common.addresses import target
from common.settings import ServiceSettings
from common.urls import BindAddress


def _peer_address(addresses: str) -> str:
    target(addresses)
    return addresses


PeerAddress = Annotated[str, AfterValidator(_peer_address)]


class OrderSettings(ServiceSettings):
    """Read from ``TALLY_ORDER_…`` and ``TALLY_…``."""

    service: ClassVar[str] = "order"

    bind: BindAddress = "127.0.0.1:50053"
    balance_address: PeerAddress = Field(
        default="127.0.0.1:50051",
        description="Address of the balance service: host:port, several separated by commas, "
        "or dns:///name:port.",
    )
    coupon_address: PeerAddress = Field(
        default="127.0.0.1:50052", description="Address of the coupon service, in the same form."
    )
    payment_address: PeerAddress = Field(
        default="127.0.0.1:50054", description="Address of the payment service, in the same form."
    )
    order_expiry_s: float = Field(
        default=900.0,
        gt=0,
        le=86_400,
        description="Time in which an order has to be paid; then it expires and its stock is free.",
    )
    pay_within_s: float = Field(
        default=20.0,
        gt=0,
        le=600,
        description="Time in which an attempt to pay has to reach the payment gateway; then it is "
        "compensated.",
    )
    saga_lease_s: float = Field(
        default=10.0,
        gt=0,
        le=600,
        description="Time without a heartbeat after which another replica takes a saga over.",
    )
    saga_sweep_interval_s: float = Field(
        default=1.0,
        gt=0,
        le=60,
        description="Time between two sweeps for sagas that are due or whose lease has expired.",
    )
    saga_running_max: int = Field(
        default=256,
        ge=1,
        le=10_000,
        description="Sagas that this replica runs at once: this many that use the payment gateway, "
        "and as many that do not. New payments may take 3/4 of each.",
    )
    saga_attempts_max: int = Field(
        default=60,
        ge=1,
        le=10_000,
        description="Failed attempts in a row of a step that must succeed, after which the saga "
        "needs attention.",
    )
    saga_backoff_max_s: float = Field(
        default=10.0, gt=0, le=600, description="Longest wait between two attempts at a step."
    )
    expiry_interval_s: float = Field(
        default=1.0,
        gt=0,
        le=60,
        description="Time between two sweeps for orders whose time has passed.",
    )
