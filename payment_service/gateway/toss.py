"""Calls to Toss Payments, a payment gateway, over HTTP.

Amounts are sent in minor units: Toss carries KRW, which has no smaller unit. Toss fixes the
currency when the customer opens the payment, so its confirm has no currency field; ``currency`` is
sent for other currencies only, as an extension, and checked in every response.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar
from urllib.parse import quote

from pydantic import SecretStr

from common.breaker import CircuitBreaker, CircuitOpen
from common.money import Money
from payment_service.gateway.exchange import ExchangeFailed, ExchangeLimits, Exchanges, NoSlot
from payment_service.gateway.outcomes import (
    Cancelled,
    CancelOutcome,
    Charge,
    ConfirmOutcome,
    Declined,
    FindOutcome,
    GatewayOutcome,
    Mismatch,
    NotFound,
    NotSent,
    Rejected,
    Saturated,
    Unknown,
)
from payment_service.gateway.toss_responses import (
    ALREADY_CANCELED,
    ALREADY_PROCESSED,
    Response,
    read_cancel,
    read_confirm,
    read_find,
)

OutcomeT = TypeVar("OutcomeT", bound=GatewayOutcome)

REASON_CHARACTERS_MAX: Final = 200
"""Toss' limit on a cancel reason."""

_UNADDRESSABLE: Final = frozenset({".", ".."})
"""Valid payment keys that a URL path cannot carry: they could be charged but not looked up."""


@dataclass(frozen=True, slots=True)
class TossOptions:
    """How to reach the gateway; times in seconds."""

    url: str
    secret_key: SecretStr
    connect_timeout_s: float = 2.0
    timeout_s: float = 10.0
    connections_max: int = 100
    breaker_failures: int = 20
    breaker_pause_s: float = 5.0


class TossGateway:
    """Toss Payments. No call raises for a failure of the gateway or the network.

    Make and close it inside the event loop.
    """

    name = "toss"
    """Stored with each payment."""

    def __init__(self, options: TossOptions) -> None:
        self._exchanges = Exchanges(
            options.url,
            options.secret_key,
            ExchangeLimits(
                connect_timeout_s=options.connect_timeout_s,
                timeout_s=options.timeout_s,
                slots=options.connections_max,
            ),
        )
        # One circuit per operation: failing confirms must not prevent the finds that resolve them.
        self._circuits = {
            operation: CircuitBreaker(
                f"gateway.{operation}",
                failures_max=options.breaker_failures,
                open_s=options.breaker_pause_s,
            )
            for operation in ("confirm", "find", "cancel")
        }

    @property
    def refuses_confirms(self) -> bool:
        """Whether a confirm is known not to be sent now, since the circuit is open."""
        return self._circuits["confirm"].refuses

    async def confirm(self, charge: Charge) -> ConfirmOutcome:
        """Take the money. Safe to repeat with the same charge."""
        if charge.payment_key in _UNADDRESSABLE:
            return Declined("INVALID_PAYMENT_KEY")
        body: dict[str, Any] = {
            "paymentKey": charge.payment_key,
            "orderId": charge.order_id,
            "amount": charge.amount.amount_minor,
        }
        if charge.amount.currency_code != "KRW":
            body["currency"] = charge.amount.currency_code
        response = await self._exchange(
            "confirm", "POST", "/v1/payments/confirm", body, charge.idempotency_key
        )
        if not isinstance(response, Response):
            return response
        if response.error_code != ALREADY_PROCESSED:
            return _with_status(read_confirm(response, charge), response)
        found = await self.find(charge)
        match found:
            case NotFound() | NotSent() | Saturated() | Rejected():
                # This call did arrive, so a look-up without a result leaves the outcome open.
                return Unknown("already processed, and the look-up had no result")
            case _:
                return found

    async def find(self, charge: Charge) -> FindOutcome:
        """Look up the state of the charge's payment key, checked against the charge."""
        if charge.payment_key in _UNADDRESSABLE:
            return NotFound()
        response = await self._exchange("find", "GET", _path(charge))
        if not isinstance(response, Response):
            return response
        return _with_status(read_find(response, charge), response)

    async def cancel(
        self, charge: Charge, reason: str, amount: Money | None = None
    ) -> CancelOutcome:
        """Give back all that is left of the money, or ``amount`` of it.

        Safe to repeat with the same charge.
        """
        if charge.payment_key in _UNADDRESSABLE:
            return NotFound()
        body: dict[str, Any] = {"cancelReason": reason[:REASON_CHARACTERS_MAX] or "cancelled"}
        if amount is not None:
            body["cancelAmount"] = amount.amount_minor
        response = await self._exchange(
            "cancel", "POST", f"{_path(charge)}/cancel", body, charge.idempotency_key
        )
        if not isinstance(response, Response):
            return response
        if response.error_code != ALREADY_CANCELED:
            return _with_status(read_cancel(response, charge, amount), response)
        found = await self.find(charge)
        match found:
            case Cancelled() | Declined() | Mismatch():
                return found
            case _:
                return Unknown("already cancelled, and the look-up had no result")

    async def aclose(self) -> None:
        await self._exchanges.aclose()

    async def _exchange(
        self,
        operation: str,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> Response | NotSent | Saturated | Unknown:
        headers = {} if idempotency_key is None else {"Idempotency-Key": idempotency_key}
        breaker = self._circuits[operation]
        if breaker.refuses:
            # Before the wait for a slot: what is known to fail takes none.
            return NotSent("circuit open", circuit_open=True)
        try:
            # The wait for a slot is outside the breaker: it says nothing about the gateway.
            async with self._exchanges.slot() as until, breaker.call():
                return await self._exchanges.send(
                    operation, method, path, body=body, headers=headers, until=until
                )
        except NoSlot:
            return Saturated()
        except CircuitOpen as circuit:
            return NotSent(str(circuit), circuit_open=True)
        except ExchangeFailed as failed:
            return failed.outcome


def _with_status(outcome: OutcomeT, response: Response) -> OutcomeT:
    return replace(outcome, http_status=response.status)


def _path(charge: Charge) -> str:
    return f"/v1/payments/{quote(charge.payment_key, safe='')}"
