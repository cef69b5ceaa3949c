"""The payment service's settings: those every service has, and how to reach its gateway."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Final, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr, model_validator

from common.environment import source_of
from common.setting_types import RateSetting, count, rate, seconds
from common.settings import ServiceSettings
from common.urls import BindAddress
from payment_service.gateway.toss import TossOptions


def _http_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        named = parts.hostname and parts.port != 0 and "@" not in parts.netloc
        plain = not (parts.query or parts.fragment or any(each.isspace() for each in url))
        valid = parts.scheme in {"http", "https"} and named and plain
    except ValueError:  # a port that is not a number, or too large
        valid = False
    if url and not valid:
        raise ValueError("must be http://host:port or https://host")
    return url


def _secret_key(key: SecretStr) -> SecretStr:
    """It is the name in HTTP's Basic authentication, which ends at a colon."""
    text = key.get_secret_value()
    if not (text.isascii() and text.isprintable()) or " " in text or ":" in text:
        raise ValueError("must be of visible ASCII characters, without a colon")
    return key


WINDOW_MARGIN_S: Final = 1.0
"""From the permission of a confirm to the start of its call, and from its end to the next clock."""


class PaymentSettings(ServiceSettings):
    service: ClassVar[str] = "payment"
    saga_methods: ClassVar[tuple[str, ...]] = (
        "tally.payment.v1.PaymentService/ConfirmPayment",
        "tally.payment.v1.PaymentService/CancelPayment",
        "tally.payment.v1.PaymentService/GetConfirmations",
    )
    limited_by: ClassVar[Mapping[str, str]] = {
        "tally.payment.v1.PaymentService/ConfirmPayment": "rate_limit_pay"
    }
    needed_to_serve: ClassVar[tuple[str, ...]] = (
        "database_url",
        "gateway_url",
        "gateway_secret_key",
    )

    bind: BindAddress = "127.0.0.1:50054"
    gateway_url: Annotated[str, AfterValidator(_http_url)] = Field(
        default="", description="Base URL of the payment gateway. Needed to serve."
    )
    gateway_secret_key: Annotated[SecretStr, AfterValidator(_secret_key)] = Field(
        default=SecretStr(""), description="The merchant's secret key. Needed to serve."
    )
    gateway_timeout_s: float = seconds(
        5.0, "Time limit of one gateway call; after it the outcome counts as unknown.", most=120
    )
    gateway_connect_timeout_s: float = seconds(
        1.0,
        "Time limit for connecting to the gateway, and for the wait for a free connection; each at "
        "most a third of GATEWAY_TIMEOUT_S.",
        most=30,
    )
    gateway_connections_max: int = count(
        200,
        "Connections to the gateway, and so calls at once. A call that gets none in time is "
        "OVERLOADED, and no failure of the gateway.",
        most=10_000,
    )
    gateway_breaker_failures: int = count(
        20, "Failed calls in a row after which no call is made for a while.", most=10_000
    )
    gateway_breaker_pause_s: float = seconds(5.0, "How long no call is made then.", most=300)
    rate_limit_pay: RateSetting = rate(
        2,
        20,
        "Calls for a user to ConfirmPayment, as RATE_LIMIT_WRITES. Where identity is on, users do "
        "not call it.",
    )
    lease_s: float = seconds(
        3.0,
        "How long a replica keeps a payment at the gateway without a heartbeat; then "
        "another replica works on it. A live replica sends three heartbeats in that time.",
        most=600,
        least=1,
    )
    confirm_window_s: float = seconds(
        900.0,
        "Time in which a payment_key can still be confirmed after a confirm that may have been "
        "sent. A cancelled payment that the gateway does not know after it was never charged. "
        "Longer than the gateway keeps a key open, and than GATEWAY_TIMEOUT_S by a second or more.",
        most=86_400,
    )
    resolve_interval_s: float = seconds(
        0.5, "Time between two searches for payments with an unknown outcome.", most=60
    )
    recheck_days: int = count(
        7,
        "Days after a payment's last change for which the gateway is asked about it once a day, to "
        "see refunds that were made in its own dashboard; 0: never. About a payment that counts as "
        "not charged it is asked from a minute after on, at least until its key is over.",
        most=365,
        least=0,
    )
    resolve_concurrency: int = count(
        16, "Payments whose outcome is looked up at once, at most.", most=1_000
    )

    @model_validator(mode="after")
    def _window_outlasts_a_call(self) -> Self:
        # Otherwise a confirm that is still at the gateway might count as one that cannot arrive.
        if self.confirm_window_s < self.gateway_timeout_s + WINDOW_MARGIN_S:
            timeout = source_of(self.service, "gateway_timeout_s")
            raise ValueError(
                f"confirm_window_s must be at least {WINDOW_MARGIN_S:g} s more than {timeout}"
            )
        return self

    def toss(self) -> TossOptions:
        """How to reach the gateway."""
        return TossOptions(
            url=self.gateway_url,
            secret_key=self.gateway_secret_key,
            connect_timeout_s=self.gateway_connect_timeout_s,
            timeout_s=self.gateway_timeout_s,
            connections_max=self.gateway_connections_max,
            breaker_failures=self.gateway_breaker_failures,
            breaker_pause_s=self.gateway_breaker_pause_s,
        )
