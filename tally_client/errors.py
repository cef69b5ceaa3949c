"""The exceptions that a call raises: one tree.

    TallyError                    code, reason, message, metadata, fields, quota, retry_after_s, …
    ├── InvalidArgument           the request is wrong, whatever the state of the service
    │   └── InvalidField, CurrencyMismatch, RequestIdReused, InvalidPageToken, AmountExceedsDue
    ├── NotFound
    │   └── AccountNotFound, LedgerEntryNotFound, CampaignNotFound, CouponNotFound,
    │       ProductNotFound, OrderNotFound, PaymentNotFound, SagaNotFound, SeatNotFound,
    │       TicketNotFound
    ├── AlreadyExists
    │   └── CouponAlreadyIssued, PaymentKeyUsed, SeatExists
    ├── FailedPrecondition        the state does not allow the call; nothing was done
    │   └── InsufficientFunds, BalanceLimitExceeded, DeductionCancelled, CampaignNotOpen,
    │       CampaignQueued, CouponNotUsable, CouponExpired, CouponWithoutEffect,
    │       OrderAmountTooSmall, RedemptionCancelled, OpenOrdersLimit, OutOfStock, SeatTaken,
    │       ProductSeated, ProductNotSeated, OrderNotPayable, OrderNotCancellable,
    │       PaymentKeyRequired, PaymentDeclined, PaymentCancelled, PaymentMethodNotSupported,
    │       PaymentOutcomeDiffers, RefundRefused, SagaNotRetryable
    ├── Aborted                   another call conflicts, or the same one is in progress
    │   └── RequestInProgress, PaymentInProgress, CartChanged, ConflictRetriesExhausted
    ├── ResourceExhausted         something ran out, or there are too many calls
    │   └── CouponSoldOut, Overloaded, QueueFull, RateLimited
    ├── Unauthenticated           the call has no token that the service accepts
    │   └── TokenMissing, TokenInvalid, TokenExpired
    ├── PermissionDenied          the caller may not make the call
    │   └── NotPermitted
    ├── Unavailable               a service reported that it cannot carry out the call now
    │   └── GatewayUnavailable, PaymentOutcomeUnknown, DatabaseUnavailable, TicketLost,
    │       PeerUnavailable, ReplicaStopping, ReplicaNotReady, Paused
    ├── InternalError             an error in the service; its log has metadata["error_id"]
    └── OutcomeUnknown            no answer: the call may have been carried out, or not
        ├── NoAnswer              the connection failed, after all retries
        └── DeadlineExceeded      the time limit passed
            └── DeadlineTooShort

The classes of reasons are in ``tally_client.refusals``. A reason that this version does not know is
raised as the class of its code, so that ``except`` by code keeps working.
"""

from __future__ import annotations

from collections.abc import Mapping

import grpc

from tally_client.rpc.answer import FieldViolation, QuotaViolation

BY_REASON: dict[str, type[TallyError]] = {}
"""The class of each reason of the contract."""
BY_CODE: dict[grpc.StatusCode, type[TallyError]] = {}
"""The class of each code, for reasons that are not known."""


class TallyError(Exception):
    """The call did not succeed.

    Create one without arguments in your own tests: ``OutOfStock()``.
    """

    code: grpc.StatusCode = grpc.StatusCode.UNKNOWN
    """gRPC's status code."""
    reason: str = ""
    """The contract's reason, such as OUT_OF_STOCK; empty if no service answered."""

    def __init_subclass__(cls, *, code: grpc.StatusCode | None = None, reason: str = "") -> None:
        if code is not None:
            cls.code = code
            BY_CODE.setdefault(code, cls)
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
        """A text for people; it may change."""
        self.code = type(self).code if code is None else code
        self.reason = type(self).reason if reason is None else reason
        self.metadata = dict(metadata or {})
        """The ids concerned, by their names in the contract."""
        self.fields = fields
        """Which fields of the request are wrong, and how."""
        self.quota = quota
        """What ran out, and by how much."""
        self.retry_after_s = retry_after_s
        """Seconds after which the same call may succeed; None if the service names no time."""
        self.method = method
        """The full name of the method (``/package.Service/Method``)."""
        self.request_id = request_id
        """The request_id that was sent, given or generated; empty if the method takes none."""
        self.may_repeat = may_repeat
        """Whether the same call, with this request_id, can be sent again without a second effect
        and may succeed."""

    def __str__(self) -> str:
        text = self.reason or self.code.name
        if self.message:
            text = f"{text}: {self.message}"
        context = [f"{name}={value}" for name, value in self.metadata.items()]
        if self.method:
            context.insert(0, self.method.rpartition("/")[2])
        if self.request_id:
            context.append(f"request_id={self.request_id}")
        return f"{text} ({', '.join(context)})" if context else text

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"


class InvalidArgument(TallyError, code=grpc.StatusCode.INVALID_ARGUMENT):
    """The request is wrong, whatever the state of the service; ``fields`` may name where."""


class NotFound(TallyError, code=grpc.StatusCode.NOT_FOUND):
    """What the request names does not exist, or belongs to another user."""


class AlreadyExists(TallyError, code=grpc.StatusCode.ALREADY_EXISTS):
    """Something of which there can be only one exists already."""


class FailedPrecondition(TallyError, code=grpc.StatusCode.FAILED_PRECONDITION):
    """The state does not allow the call; nothing was done."""


class Aborted(TallyError, code=grpc.StatusCode.ABORTED):
    """Another call conflicts with this one, which did nothing.

    Except for REQUEST_IN_PROGRESS: a call with this request_id is running and its outcome will
    follow. Either another call started it, or this one did and it takes longer than a call may
    wait.
    """


class ResourceExhausted(TallyError, code=grpc.StatusCode.RESOURCE_EXHAUSTED):
    """Something ran out (``quota`` says what), or there are too many calls."""


class Unauthenticated(TallyError, code=grpc.StatusCode.UNAUTHENTICATED):
    """The call has no token that the service accepts; nothing was done."""


class PermissionDenied(TallyError, code=grpc.StatusCode.PERMISSION_DENIED):
    """The caller that the token names may not make the call; nothing was done."""


class Unavailable(TallyError, code=grpc.StatusCode.UNAVAILABLE):
    """A service reported that it cannot carry out the call now, and why."""


class InternalError(TallyError, reason="INTERNAL", code=grpc.StatusCode.INTERNAL):
    """An error in the service; its log has the details under ``metadata["error_id"]``."""


class OutcomeUnknown(TallyError):
    """No answer arrived: the call may have been carried out, or not, or may still be running.

    Call again with the same ``request_id`` to learn the outcome: the calls together have at most
    one effect. Changes of CartService take no request_id: read the cart instead.
    """


class NoAnswer(OutcomeUnknown, code=grpc.StatusCode.UNAVAILABLE):
    """The connection failed, and so did the retries that are safe; or the client was closed."""


class DeadlineExceeded(
    OutcomeUnknown, reason="DEADLINE_EXCEEDED", code=grpc.StatusCode.DEADLINE_EXCEEDED
):
    """The time limit passed before an answer arrived."""


class DeadlineTooShort(DeadlineExceeded, reason="DEADLINE_TOO_SHORT"):
    """The service had too little time left to begin. An earlier attempt may have had its effect."""
