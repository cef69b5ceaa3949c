"""Commands about sagas: from their runner, from the journal and from operators."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from common.request_key import RequestKey, digest_of
from order_service.model.saga import Saga


@dataclass(frozen=True, slots=True)
class CloseSaga:
    """End the saga, as given, and move its order. Its epoch must still be the row's."""

    saga: Saga

    @property
    def order_id(self) -> str:
        return self.saga.order_id


@dataclass(frozen=True, slots=True)
class RetrySaga:
    """Continue a saga that needs attention."""

    saga_id: str
    order_id: str
    request_id: str

    @property
    def key(self) -> RequestKey:
        return RequestKey("RetrySaga", "", self.request_id)

    @property
    def digest(self) -> bytes:
        return digest_of(self.saga_id)


@dataclass(frozen=True, slots=True)
class ResolveSaga:
    """Close a saga that needs attention, because a person has settled what it could not."""

    saga_id: str
    order_id: str
    reason: str
    request_id: str

    @property
    def key(self) -> RequestKey:
        return RequestKey("ResolveSaga", "", self.request_id)

    @property
    def digest(self) -> bytes:
        return digest_of(self.saga_id, self.reason)


@dataclass(frozen=True, slots=True)
class PayAttempt:
    """The PayOrder request that a saga answers when it ends."""

    saga: Saga

    @property
    def key(self) -> RequestKey:
        return RequestKey("PayOrder", self.saga.user_id, self.saga.asked.request_id)

    @property
    def digest(self) -> bytes:
        return bytes.fromhex(self.saga.asked.digest)


# -- the journal ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WriteSaga:
    """Journal the saga. No other replica touches it for ``lease_s`` seconds."""

    saga: Saga
    lease_s: float

    @property
    def owned(self) -> tuple[str, int]:
        return self.saga.saga_id, self.saga.epoch


@dataclass(frozen=True, slots=True)
class RenewLease:
    """The owner still runs the saga. With 0 seconds it gives the saga up."""

    saga_id: str
    epoch: int
    lease_s: float

    @property
    def owned(self) -> tuple[str, int]:
        return self.saga_id, self.epoch


@dataclass(frozen=True, slots=True)
class TakeOverSagas:
    """Take over sagas of one bulkhead that are due or whose lease has expired, the oldest first."""

    owner: str
    """The replica's name, for people; the epoch is what counts."""
    lease_s: float
    uses_gateway: bool
    """The bulkhead: sagas that may call the payment gateway, or those that do not."""
    capacity: int
    """How many sagas at most."""
    retries: int
    """How many of them at most have failed before. The others come first."""
    plans: Collection[tuple[str, int]]
    """The plans that this release knows, as (kind, version)."""
