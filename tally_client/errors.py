"""What a call ends with when it does not end well: one exception tree.

    TallyError                    code, reason, message, metadata, fields, quota, retry_after_s, …
    ├── InvalidArgument           the request is wrong and stays wrong
    │   └── InvalidField, CurrencyMismatch, RequestIdReused, InvalidPageToken, AmountExceedsDue
    ├── NotFound
    │   └── AccountNotFound, CampaignNotFound, CouponNotFound, ProductNotFound, OrderNotFound,
    │       PaymentNotFound, SagaNotFound
    ├── AlreadyExists
    │   └── CouponAlreadyIssued, PaymentKeyUsed
    ├── FailedPrecondition        things are not as the call needs them; nothing was done
    │   └── InsufficientFunds, BalanceLimitExceeded, DeductionCancelled, CampaignNotOpen,
    │       CouponNotUsable, CouponExpired, OrderAmountTooSmall, RedemptionCancelled, OutOfStock,
    │       OrderNotPayable, OrderNotCancellable, PaymentKeyRequired, PaymentDeclined,
    │       PaymentCancelled, SagaNotRetryable
    ├── Aborted                   another call was in the way, or the same one is under way
    │   └── RequestInProgress, PaymentInProgress, CartChanged, ConflictRetriesExhausted
    ├── ResourceExhausted         nothing is left of it, or too much is asked for at once
    │   └── CouponSoldOut, Overloaded, RateLimited
    ├── Unavailable               a service said that it cannot do it now
    │   └── GatewayUnavailable, PaymentOutcomeUnknown, DatabaseUnavailable, PeerUnavailable,
    │       ReplicaStopping, ReplicaNotReady
    ├── InternalError             a fault of the service, whose log has metadata["error_id"]
    └── OutcomeUnknown            no answer came: the call may have been carried out, or not
        ├── NoAnswer              nothing was heard, however often it was tried
        └── DeadlineExceeded      the time ran out
            └── DeadlineTooShort

The classes of reasons are in ``tally_client.refusals``. A reason that this version does not know
comes as the class above it, so that ``except`` by kind goes on to work.
"""

from __future__ import annotations

from collections.abc import Mapping

import grpc

from common.errors import FieldViolation, QuotaViolation

BY_REASON: dict[str, type[TallyError]] = {}
"""Every class that stands for a reason of the contract."""


class TallyError(Exception):
    """The call did not succeed."""

    code: grpc.StatusCode = grpc.StatusCode.UNKNOWN
    """gRPC's status code."""
    reason: str = ""
    """What to switch on if not by class; empty when no service said anything."""

    def __init_subclass__(cls, *, reason: str = "") -> None:
        if reason:
            cls.reason = reason
            BY_REASON[reason] = cls

    def __init__(
        self,
        message: str = "",
        *,
        code: grpc.StatusCode | None = None,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
        fields: tuple[FieldViolation, ...] = (),
        quota: tuple[QuotaViolation, ...] = (),
        retry_after_s: float | None = None,
        method: str = "",
        request_id: str = "",
        may_repeat: bool = False,
    ) -> None:
        super().__init__(message)
        self.message = message
        """For people; it may change."""
        self.code = type(self).code if code is None else code
        self.reason = type(self).reason if reason is None else reason
        self.metadata = dict(metadata or {})
        """The ids concerned, by the names that the contract gives them."""
        self.fields = fields
        """Which fields of the request are wrong, and how."""
        self.quota = quota
        """What ran out, and by how much."""
        self.retry_after_s = retry_after_s
        """Seconds after which the same call may help; None if the service did not say so."""
        self.method = method
        """Full name of the method that was called (``/package.Service/Method``)."""
        self.request_id = request_id
        """The request_id that was sent, made here or not; empty if the method takes none."""
        self.may_repeat = may_repeat
        """Whether the same call, with this request_id, is safe to send again and may end
        otherwise."""

    def __str__(self) -> str:
        told = self.reason or self.code.name
        if self.message:
            told = f"{told}: {self.message}"
        named = [f"{name}={value}" for name, value in self.metadata.items()]
        if self.method:
            named.insert(0, self.method.rpartition("/")[2])
        if self.request_id:
            named.append(f"request_id={self.request_id}")
        return f"{told} ({', '.join(named)})" if named else told

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"


class InvalidArgument(TallyError):
    """The request is wrong, whatever the state of things; ``fields`` may say where."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class NotFound(TallyError):
    """What the request names does not exist, or is not this user's."""

    code = grpc.StatusCode.NOT_FOUND


class AlreadyExists(TallyError):
    """What there can be only one of is there already."""

    code = grpc.StatusCode.ALREADY_EXISTS


class FailedPrecondition(TallyError):
    """Things are not as the call needs them; nothing was done."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class Aborted(TallyError):
    """Another call was in the way; this one did nothing.

    But for REQUEST_IN_PROGRESS: what has this request_id is under way, and its outcome is to come.
    It was begun by another call, or, if it takes longer than a call may wait, by this one.
    """

    code = grpc.StatusCode.ABORTED


class ResourceExhausted(TallyError):
    """Nothing is left of what was asked for, or too much is asked for at once."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class Unavailable(TallyError):
    """A service said that it cannot do it now, and why."""

    code = grpc.StatusCode.UNAVAILABLE


class InternalError(TallyError, reason="INTERNAL"):
    """A fault of the service; its log has more under ``metadata["error_id"]``."""

    code = grpc.StatusCode.INTERNAL


class OutcomeUnknown(TallyError):
    """No answer came: the call may have been carried out, or not, or may still be running.

    Call again with the same ``request_id`` to hear the outcome: it has one effect at most.
    CartService's changes take none; read the cart.
    """


class NoAnswer(OutcomeUnknown):
    """The connection failed, and so did whatever repetitions are safe; or the client was closed."""

    code = grpc.StatusCode.UNAVAILABLE


class DeadlineExceeded(OutcomeUnknown, reason="DEADLINE_EXCEEDED"):
    """The time ran out before an answer came."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


class DeadlineTooShort(DeadlineExceeded, reason="DEADLINE_TOO_SHORT"):
    """The service had too little time left to begin. An earlier attempt may have been made."""
