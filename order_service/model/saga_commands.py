"""What is asked of sagas where they meet their orders. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from common.request_key import RequestKey, digest_of
from order_service.model.orders import PayOrder
from order_service.model.sagas import Saga


@dataclass(frozen=True, slots=True)
class BeginPayment:
    """Begin an attempt to pay, under this saga_id; or find the one that this request began."""

    command: PayOrder
    saga_id: str
    has_room: bool = True
    """Whether the replica can be at work on one more; if not, only a repetition is answered."""

    @property
    def order_id(self) -> str:
        return self.command.order_id

    @property
    def request_id(self) -> str:
        return self.command.request_id


@dataclass(frozen=True, slots=True)
class CloseSaga:
    """End the saga, as it is to be written, and move its order. Its epoch must still be ours."""

    saga: Saga

    @property
    def order_id(self) -> str:
        return self.saga.order_id


@dataclass(frozen=True, slots=True)
class RetrySaga:
    """Set a saga that needs attention going again."""

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
    """Close a saga that needs attention: a person has put right what it could not."""

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
