"""The gateway's side through its API, Toss Payments: look-ups of payments by their keys."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote, urlsplit

from pydantic import SecretStr

from deploy.audit.errors import CannotAudit
from deploy.audit.gateway_records import ChargeRecord
from payment_service.gateway.exchange import ExchangeFailed, ExchangeLimits, Exchanges, NoSlot
from payment_service.gateway.toss_responses import NOT_FOUND, Response

CALLS_AT_ONCE: Final = 8
ATTEMPTS_MAX: Final = 4
BACKOFF_S: Final = 0.5
"""Before the second attempt, and twice as long before each further one."""
TIMEOUT_S: Final = 10.0
CONNECT_TIMEOUT_S: Final = 2.0
_TOO_MANY: Final = 429
_CAPTURED: Final = frozenset({"DONE", "CANCELED", "PARTIAL_CANCELED"})
"""The statuses of a payment whose money was taken, unless its approval has no time."""
_UNADDRESSABLE: Final = frozenset({".", ".."})
"""Valid payment keys that a URL path cannot carry: nothing is ever charged for them."""


@dataclass(frozen=True, slots=True)
class GatewayAddress:
    """Where the gateway is, and how far back payments are looked up in a full audit."""

    url: str
    secret_key: SecretStr
    days: int

    @property
    def place(self) -> str:
        """Its host, for messages."""
        return urlsplit(self.url).netloc


class GatewayApi:
    """Look-ups of payments by key, a few at once. ``open_gateway`` makes it."""

    def __init__(self, address: GatewayAddress, exchanges: Exchanges) -> None:
        self.address = address
        self._exchanges = exchanges

    async def records_of(self, keys: Sequence[str]) -> dict[str, ChargeRecord]:
        """The records of these payment keys, where there are any.

        Raises CannotAudit if the gateway does not answer, or answers what cannot be read.
        """
        found: dict[str, ChargeRecord] = {}
        for first in range(0, len(keys), CALLS_AT_ONCE):
            some = keys[first : first + CALLS_AT_ONCE]
            records = await asyncio.gather(*map(self._find, some))
            found |= {key: one for key, one in zip(some, records, strict=True) if one}
        return found

    async def _find(self, key: str) -> ChargeRecord | None:
        if key in _UNADDRESSABLE:
            return None
        problem = ""
        for attempt in range(ATTEMPTS_MAX):
            if attempt:
                await asyncio.sleep(BACKOFF_S * 2 ** (attempt - 1))
            try:
                async with self._exchanges.slot() as until:
                    path = f"/v1/payments/{quote(key, safe='')}"
                    response = await self._exchanges.send(
                        "find", "GET", path, body=None, headers={}, until=until
                    )
            except (ExchangeFailed, NoSlot) as error:
                problem = str(error) or type(error).__name__
                continue
            if response.status != _TOO_MANY:
                return self._read(key, response)
            problem = "too many calls"
        raise CannotAudit(f"the gateway {self.address.place} does not answer: {problem}")

    def _read(self, key: str, response: Response) -> ChargeRecord | None:
        if response.client_error_code == NOT_FOUND:
            return None
        if response.error_code is not None or response.status != 200:
            code = response.error_code or f"status {response.status}"
            raise CannotAudit(f"the gateway {self.address.place} refuses the look-up: {code}")
        try:
            return record_of(key, response.body)
        except (KeyError, TypeError, ValueError):
            raise CannotAudit(
                f"the gateway {self.address.place}: what it has of key {key} cannot be read"
            ) from None


@asynccontextmanager
async def open_gateway(address: GatewayAddress) -> AsyncIterator[GatewayApi]:
    """The gateway's API, until the end of the block."""
    limits = ExchangeLimits(CONNECT_TIMEOUT_S, TIMEOUT_S, CALLS_AT_ONCE)
    exchanges = Exchanges(address.url, address.secret_key, limits)
    try:
        yield GatewayApi(address, exchanges)
    finally:
        await exchanges.aclose()


def record_of(key: str, body: Mapping[str, Any]) -> ChargeRecord:
    """Read a payment object. Raises KeyError, TypeError or ValueError for one of another form."""
    total, balance = _amount(body["totalAmount"]), _amount(body["balanceAmount"])
    taken = body["status"] in _CAPTURED and body.get("approvedAt", "") is not None
    transaction = body["lastTransactionKey"]
    if body["paymentKey"] != key or not (transaction is None or isinstance(transaction, str)):
        raise ValueError
    return ChargeRecord(
        payment_key=key,
        order_id=str(body["orderId"]),
        currency=str(body["currency"]),
        balance_amount=balance,
        captured=total if taken else 0,
        refunded=total - balance if taken else 0,
        by_call=None,
        transaction_key=transaction or "",
        refunds=frozenset(str(one["transactionKey"]) for one in body.get("cancels") or ()),
        approval=None,
    )


def _amount(value: object) -> int:
    # The type counts too: True == 1 and 1000.0 == 1000, and neither is an amount.
    if type(value) is not int:
        raise TypeError
    return value
