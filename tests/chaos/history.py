"""Every call that was made: what was asked, by whom it was answered, and how."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from common.errors import Code, Refusal
from common.request_key import RequestKey
from common.rpc.status import is_retryable

OPERATORS: Final = frozenset(
    {"CreateCampaign", "CreateProduct", "RestockProduct", "AddSeats", "ResolvePayment"}
)
"""Methods whose request_id is unique without a user."""
NOTHING_WRITTEN: Final = frozenset(
    {"OVERLOADED", "DEADLINE_TOO_SHORT", "CONFLICT_RETRIES_EXHAUSTED"}
)
"""Reasons to try again that also say that this call has had no effect."""


class Outcome(enum.Enum):
    """What a caller knows after a call."""

    OK = "OK"
    REFUSED = "refused"
    """It had no effect."""
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Call:
    """One call and its reply; times are of the tester's monotonic clock."""

    start_s: float
    end_s: float
    outcome: Outcome
    response: Any = None
    refusal: Refusal | None = None
    changed: bool = False
    """It had another body than the calls before."""

    @property
    def final(self) -> bool:
        """Whether repeating the call is of no use: OK, or a refusal that would come again."""
        if self.outcome is not Outcome.REFUSED or self.refusal is None:
            return self.outcome is Outcome.OK
        return self.refusal.retry_after_s is None and self.reason not in NOTHING_WRITTEN

    @property
    def reason(self) -> str:
        return "" if self.refusal is None else self.refusal.reason


@dataclass(slots=True)
class Intent:
    """One request_id, and every call that was made with it."""

    key: RequestKey
    method: Any
    request: Any
    calls: list[Call] = field(default_factory=list)
    prevented: bool = False
    """Its compensation was asked for: it may be refused although it was carried out."""

    def of(self, outcome: Outcome) -> Iterator[Call]:
        """The calls with the first body that ended so."""
        return (call for call in self.calls if call.outcome is outcome and not call.changed)

    @property
    def answered(self) -> Call | None:
        """The first call that returned OK."""
        return min(self.of(Outcome.OK), key=lambda call: call.end_s, default=None)

    def outcome_is(self, outcome: Outcome) -> bool:
        """Whether every call ended so, and there is one."""
        same = [call for call in self.calls if not call.changed]
        return bool(same) and all(call.outcome is outcome for call in same)


@dataclass(frozen=True, slots=True)
class Read:
    """A balance that was read."""

    user_id: str
    start_s: float
    end_s: float
    version: int
    available_minor: int


@dataclass(frozen=True, slots=True)
class CartCall:
    """A change or read of a cart of one product, and what was replied."""

    user_id: str
    method: str
    start_s: float
    end_s: float
    outcome: Outcome
    reason: str
    asked: int
    """The quantity to set; 0 for a change that empties the cart, or a read."""
    expected: int | None
    """The version that the change expects."""
    version: int = 0
    """In the reply, with the quantity."""
    quantity: int = 0

    @classmethod
    def of(
        cls, user_id: str, asked: int, expected: int | None, method: Any, call: Call
    ) -> CartCall:
        known = (user_id, name_of(method), call.start_s, call.end_s, call.outcome, call.reason)
        if call.outcome is not Outcome.OK:
            return cls(*known, asked, expected)
        cart = call.response.cart
        quantity = sum(item.quantity for item in cart.items)
        return cls(*known, asked, expected, cart.version, quantity)

    @property
    def changes(self) -> bool:
        return self.method != "GetCart"

    def __str__(self) -> str:
        asked = f"{self.asked} at {self.expected}" if self.changes else ""
        return f"{self.method} {asked} replied {self.quantity} in version {self.version}"


@dataclass
class History:
    """All that was asked of a stack."""

    intents: dict[RequestKey, Intent] = field(default_factory=dict)
    reads: list[Read] = field(default_factory=list)
    carts: list[CartCall] = field(default_factory=list)
    cart_versions: dict[str, int] = field(default_factory=dict)
    """The version of each cart in the last reply."""
    tickets: dict[str, set[str]] = field(default_factory=dict)
    """The coupons that users who queued were shown, by user."""
    counts: Counter[Outcome] = field(default_factory=Counter)
    """Calls by outcome; an item of a bulk call counts as one."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Refusals and unknown outcomes, by reason or code."""
    succeeded_s: dict[str, float] = field(default_factory=dict)
    """By method, when the last call began that returned OK."""

    def intent(self, method: Any, request: Any) -> Intent:
        """The intent of a request, which may be new."""
        name = name_of(method)
        scope = "" if name in OPERATORS else request.user_id
        key = RequestKey(name, scope, request.request_id)
        return self.intents.setdefault(key, Intent(key, method, request))

    def add(self, intent: Intent, call: Call) -> None:
        """Record a call."""
        intent.calls.append(call)
        self._count(intent.key.method, call)

    def add_cart(self, made: CartCall, call: Call) -> None:
        """Record a change or read of a cart."""
        self.carts.append(made)
        self._count(made.method, call)
        if made.version:
            self.cart_versions[made.user_id] = made.version

    def _count(self, method: str, call: Call) -> None:
        self.counts[call.outcome] += 1
        if call.outcome is Outcome.OK:
            self.succeeded(method, call.start_s)
        if call.refusal is not None:
            self.reasons[call.reason or call.refusal.code.value] += 1

    def succeeded(self, method: str, start_s: float) -> None:
        """A call of this method, begun then, has returned OK."""
        self.succeeded_s[method] = max(self.succeeded_s.get(method, 0.0), start_s)


def outcome_of(refusal: Refusal, method: str) -> Outcome:
    """What is known after a refusal by this method."""
    not_charged = method == "ConfirmPayment" and refusal.reason == "GATEWAY_UNAVAILABLE"
    if refusal.reason in NOTHING_WRITTEN or not_charged:
        return Outcome.REFUSED
    if not refusal.reason or is_retryable(refusal) or refusal.code is Code.INTERNAL:
        return Outcome.UNKNOWN
    return Outcome.REFUSED


def name_of(method: Any) -> str:
    """The name of a stub's method."""
    return str(method._method.decode().rpartition("/")[2])
