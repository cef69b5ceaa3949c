"""Commands about sagas: from their runner, from the journal and from operators."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from common.money import Money
from common.request_key import RequestKey, digest_of
from order_service.model.saga import Saga, SagaKind, SagaState


@dataclass(frozen=True, slots=True)
class CloseSaga:
    """End the saga, as given, and move its order. Its epoch must still be the row's."""

    saga: Saga

    @property
    def order_id(self) -> str:
        return self.saga.order_id


@dataclass(frozen=True, slots=True)
class NoteFailure:
    """Show on the order why its saga cannot end. Its epoch must still be the row's."""

    saga: Saga
    reason: str

    @property
    def order_id(self) -> str:
        return self.saga.order_id


@dataclass(frozen=True, slots=True)
class RetrySaga:
    """Make a saga due that waits."""

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
class RetrySagas:
    """Make all sagas due that wait and match. None: any."""

    state: SagaState | None
    kind: SagaKind | None
    last_reason: str | None
    age_us: int
    """How long ago they began, at least, in microseconds."""
    request_id: str

    @property
    def key(self) -> RequestKey:
        return RequestKey("RetrySagas", "", self.request_id)

    @property
    def digest(self) -> bytes:
        return digest_of(self.state, self.kind, self.last_reason, self.age_us)


@dataclass(frozen=True, slots=True)
class Standing:
    """The effect of a step that stays although its saga is closed."""

    step: str
    amount: Money | None
    """How much, of a payment; None: all that is left of it."""
    reason: str


@dataclass(frozen=True, slots=True)
class ResolveSaga:
    """Close a saga that needs attention: all that has begun is undone, unless it stands."""

    saga_id: str
    order_id: str
    reason: str
    standing: tuple[Standing, ...]
    request_id: str
    left_of_payment: Money | None = None
    """What is confirmed of the payment and not given back, unless its cancellation is stored and
    not refused; not part of the request's content."""
    refund_refused: bool = False
    """Whether the gateway has refused the refund permanently; not part of the request's content."""

    @property
    def key(self) -> RequestKey:
        return RequestKey("ResolveSaga", "", self.request_id)

    @property
    def digest(self) -> bytes:
        content: list[str | int | None] = [self.saga_id, self.reason]
        for one in sorted(self.standing, key=lambda one: one.step):
            content += [one.step, one.reason]
            if one.amount is not None:
                content += [one.amount.currency_code, one.amount.amount_minor]
        return digest_of(*content)


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
    from_epoch: int | None = None
    """The row's epoch, if the write raises it: a replica that still runs the saga loses it."""

    @property
    def owned(self) -> tuple[str, int]:
        return self.saga.saga_id, self.from_epoch or self.saga.epoch


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
    away: Collection[str]
    """What is away: of the sagas that wait for nothing else, one for each is taken over."""
    plans: Collection[tuple[str, int]]
    """The plans that this release knows, as (kind, version)."""
