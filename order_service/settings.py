"""The order service's settings: those every service has, the peers', and its own times."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field

from common.environment import SettingsError, source_of
from common.identity.service_token import ServiceToken
from common.process_settings import Command
from common.setting_types import RateSetting, count, rate, seconds
from common.settings import ServiceSettings
from common.tls import AUTHORITIES, CERTIFICATE, KEY
from common.urls import BindAddress
from tally_client.rpc.addresses import target
from tally_client.rpc.certificates import Certificates


def _peer_address(addresses: str) -> str:
    target(addresses)
    return addresses


PeerAddress = Annotated[str, AfterValidator(_peer_address)]


class OrderSettings(ServiceSettings):
    service: ClassVar[str] = "order"
    limited_by: ClassVar[Mapping[str, str]] = {
        "tally.order.v1.OrderService/PayOrder": "rate_limit_pay"
    }
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
    service_token_file: str = Field(
        default="",
        description="File with the token that sagas send to the other services, read every 10 s. "
        "With AUTH=required, it or PEER_TLS_DIR is needed.",
    )
    order_expiry_s: float = seconds(
        900.0,
        "Time in which an order has to be paid; then it expires and its stock is free.",
        most=86_400,
    )
    open_orders_max: int = count(
        0,
        "Orders that a user may have that wait for their payment or are being paid; more are "
        "refused with OPEN_ORDERS_LIMIT. Each replica may exceed it by one batch. 0: no limit.",
        most=1_000_000,
        least=0,
    )
    rate_limit_pay: RateSetting = rate(2, 20, "Calls of a user to PayOrder, as RATE_LIMIT_WRITES.")
    pay_within_s: float = seconds(
        20.0,
        "Time in which an attempt to pay has to reach the payment gateway; then it is compensated.",
        most=600,
    )
    saga_lease_s: float = seconds(
        10.0, "Time without a heartbeat after which another replica takes a saga over.", most=600
    )
    saga_sweep_interval_s: float = seconds(
        1.0, "Time between two sweeps for sagas that are due or whose lease has expired.", most=60
    )
    saga_running_max: int = count(
        256,
        "Sagas that this replica runs at once: this many that use the payment gateway, and as many "
        "that do not. A new payment is refused when 3/4 of its kind are running.",
        least=4,
        most=10_000,
    )
    saga_attention_s: float = seconds(
        300.0,
        "Age at which a saga that still fails is reported as NEEDS_ATTENTION. It continues.",
        most=86_400,
    )
    saga_backoff_max_s: float = seconds(
        10.0, "Longest wait between two attempts at a step.", most=600
    )
    product_cache_s: float = seconds(
        0.0,
        "Age up to which GetProduct and ListProducts may return what this replica read before; "
        "0: none is kept. Orders and carts never use it.",
        most=300,
        least=0,
    )
    expiry_interval_s: float = seconds(
        1.0, "Time between two sweeps for orders whose time has passed.", most=60
    )

    def check(self, command: Command) -> None:
        super().check(command)
        if command == "serve":
            self._check_calls_to_others()

    def _check_calls_to_others(self) -> None:
        if self.auth == "required" and not (self.service_token_file or self.peer_tls_dir):
            auth = source_of(self.service, "auth")
            raise ValueError(f"service_token_file is needed with {auth}=required, or PEER_TLS_DIR")
        if self.production and not self.peer_tls_dir:
            raise ValueError("peer_tls_dir is needed in production")
        for name in ("balance_address", "coupon_address", "payment_address"):
            if self.peer_tls_dir and "," in getattr(self, name):
                source = source_of(self.service, "peer_tls_dir")
                raise ValueError(f"{name} must be one name with {source}: certificates are for it")

    def peer_certificates(self) -> Certificates | None:
        """What calls to the other services use for TLS; None: they are in plaintext.

        Raises SettingsError. Without its own certificate in the directory, a call needs a token.
        """
        if not self.peer_tls_dir:
            return None
        directory = Path(self.peer_tls_dir)
        own = (directory / CERTIFICATE, directory / KEY)
        certificate, key = own if own[0].exists() else (None, None)
        certificates = Certificates(directory / AUTHORITIES, certificate, key)
        try:
            certificates.read()
        except ValueError as error:
            raise SettingsError(f"{source_of(self.service, 'peer_tls_dir')}: {error}") from None
        return certificates

    def service_token(self) -> ServiceToken | None:
        """The token of the service's own calls; None if they have none. Raises SettingsError."""
        if not self.service_token_file:
            return None
        try:
            return ServiceToken(Path(self.service_token_file))
        except (OSError, ValueError) as error:
            problem = getattr(error, "strerror", None) or str(error)
            source = source_of(self.service, "service_token_file")
            raise SettingsError(f"{source}: {problem}") from None
