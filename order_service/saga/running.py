"""A saga that this replica runs, its limits and its end."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from order_service.model.order import Order
from order_service.model.saga import Saga
from order_service.model.saga_input import Failure


@dataclass(frozen=True, slots=True)
class SagaLimits:
    """The limits of the sagas in one replica."""

    lease_s: float = 10.0
    """After this time without a heartbeat another replica takes over."""
    running_max: int = 256
    """Sagas in each bulkhead of a replica (``Runner``)."""
    call_s: float = 15.0
    """Time limit of one step, its quick retries included."""
    backoff_s: float = 0.5
    """First pause after a step that must succeed has failed; doubles each time."""
    backoff_max_s: float = 10.0
    attention_s: float = 300.0
    """Age at which a saga that still fails needs a person's attention."""
    unreached_max: int = 3
    """How often in a row a gateway that provably was not reached is called before compensation.

    Not at all again if the payment service's circuit is open.
    """
    hand_over_s: float = 2.0
    """How long sagas get to end their call when the replica stops."""


@dataclass(frozen=True, slots=True)
class SagaEnd:
    """How a saga ended."""

    order: Order
    failure: Failure | None
    """Why an attempt to pay was compensated; None if the saga reached its goal."""


@dataclass(slots=True, eq=False)
class RunningSaga:
    """A saga that this replica runs."""

    saga: Saga
    started: datetime
    """The database's clock when the saga was begun or taken over."""
    started_s: float
    """The event loop's clock at the same time."""
    lease_until_s: float
    """The event loop's time at which the lease ends, about. The journal's epoch is the fence."""
    end: asyncio.Future[SagaEnd | None] = field(repr=False)
    """Done when the saga stops here; None if it has not ended, but waits or is lost."""
    task: asyncio.Task[None] = field(init=False)
    renewal: asyncio.Task[None] | None = None
    """The last renewal of its lease, perhaps under way."""

    @property
    def elapsed_s(self) -> float:
        return asyncio.get_running_loop().time() - self.started_s

    @property
    def now(self) -> datetime:
        """The database's clock, as far as this replica knows it without asking."""
        return self.started + timedelta(seconds=self.elapsed_s)

    @property
    def time_left_s(self) -> float | None:
        """Seconds in which the saga may still reach its pivot; None: no limit."""
        limit_s = self.saga.time_left_s
        return None if limit_s is None else limit_s - self.elapsed_s

    @property
    def late(self) -> bool:
        left_s = self.time_left_s
        return left_s is not None and left_s <= 0
