"""Refusals: typed exceptions that ``common.rpc.status`` converts to gRPC statuses and back.

The first line of a subclass's docstring is its message; clients switch on its ``code`` and
``reason``. No further mapping is needed: a refusal raised anywhere in a service reaches the client.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from common.ids import is_id


class Code(enum.StrEnum):
    """The gRPC status codes of refusals, by their names in the gRPC specification.

    Not ``grpc.StatusCode``, so that models and their tests need no gRPC.
    """

    CANCELLED = "CANCELLED"
    UNKNOWN = "UNKNOWN"
    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    NOT_FOUND = "NOT_FOUND"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
    FAILED_PRECONDITION = "FAILED_PRECONDITION"
    ABORTED = "ABORTED"
    OUT_OF_RANGE = "OUT_OF_RANGE"
    UNIMPLEMENTED = "UNIMPLEMENTED"
    INTERNAL = "INTERNAL"
    UNAVAILABLE = "UNAVAILABLE"
    DATA_LOSS = "DATA_LOSS"
    UNAUTHENTICATED = "UNAUTHENTICATED"


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """A field that is not valid, by its path in the request (``items[0].quantity``)."""

    field: str
    description: str


@dataclass(frozen=True, slots=True)
class QuotaViolation:
    """What ran out (``campaign:<id>``, ``product:<id>``), and by how much."""

    subject: str
    description: str


class Refusal(Exception):  # noqa: N818 - a refusal is a fact, not a fault
    """The request cannot be carried out."""

    code: ClassVar[Code] = Code.FAILED_PRECONDITION
    reason: ClassVar[str] = ""
    retry_after_s: ClassVar[float | None] = None
    """Seconds after which the same call may succeed; None if it would be refused again."""

    fields: tuple[FieldViolation, ...] = ()
    quota: tuple[QuotaViolation, ...] = ()

    def __init_subclass__(
        cls, *, code: Code | None = None, reason: str = "", retry_after_s: float | None = None
    ) -> None:
        cls.code = code or cls.code
        cls.reason = reason or cls.reason
        cls.retry_after_s = cls.retry_after_s if retry_after_s is None else retry_after_s

    def __init__(self, message: str | None = None, /, **metadata: str) -> None:
        """``metadata``: the ids concerned, sent to the client as ErrorInfo.metadata."""
        self.message = message or (type(self).__doc__ or "").strip().split("\n", 1)[0]
        self.metadata = metadata
        super().__init__(self.message)


class InvalidFields(Refusal, code=Code.INVALID_ARGUMENT, reason="INVALID_FIELD"):
    """The request has fields that are not valid."""

    def __init__(self, violations: Iterable[FieldViolation]) -> None:
        self.fields = tuple(violations)
        message = "; ".join(f"{v.field}: {v.description}" for v in self.fields)
        super().__init__(message, field=self.fields[0].field)


class InvalidField(InvalidFields):
    """One field of the request is not valid."""

    def __init__(self, field: str, description: str) -> None:
        super().__init__([FieldViolation(field, description)])


class CurrencyMismatch(Refusal, code=Code.INVALID_ARGUMENT, reason="CURRENCY_MISMATCH"):
    """Amounts of different currencies cannot be combined."""


class RequestIdReused(Refusal, code=Code.INVALID_ARGUMENT, reason="REQUEST_ID_REUSED"):
    """This request_id was used before with other content; use a new one for a new request."""


class NotFound(Refusal, code=Code.NOT_FOUND):
    """There is no such row, or it is another user's. Each kind of row has its own subclass."""

    def __init__(self, *, user_id: str = "", **ids: str) -> None:
        """``ids`` are of Tally's own form; text of another form is not repeated to the client."""
        named = {"user_id": user_id} if user_id else {}
        super().__init__(**named, **{name: text for name, text in ids.items() if is_id(text)})


class InvalidPageToken(Refusal, code=Code.INVALID_ARGUMENT, reason="INVALID_PAGE_TOKEN"):
    """The page_token was not issued by this list, or was issued for other filters."""


class RequestInProgress(
    Refusal, code=Code.ABORTED, reason="REQUEST_IN_PROGRESS", retry_after_s=1.0
):
    """The first call with this request_id is still running; repeat the call to get its response."""


class ConflictRetriesExhausted(
    Refusal, code=Code.ABORTED, reason="CONFLICT_RETRIES_EXHAUSTED", retry_after_s=0.1
):
    """Other writers kept changing the same rows; nothing was written, repeat the call."""


class Overloaded(Refusal, code=Code.RESOURCE_EXHAUSTED, reason="OVERLOADED", retry_after_s=0.5):
    """This replica has more calls than it can serve; repeat the call a little later."""


class RateLimited(Refusal, code=Code.RESOURCE_EXHAUSTED, reason="RATE_LIMITED", retry_after_s=1.0):
    """Too many calls of this method came from this caller; nothing was done."""

    def __init__(self, wait_s: float) -> None:
        """``wait_s``: after which the call is admitted, if no other one comes."""
        super().__init__()
        # Rounded up: a call that comes after it must not be refused again.
        self.retry_after_s = math.ceil(wait_s * 1000) / 1000  # type: ignore[misc]


class DatabaseUnavailable(
    Refusal, code=Code.UNAVAILABLE, reason="DATABASE_UNAVAILABLE", retry_after_s=1.0
):
    """The database did not answer; repeat the call with the same request_id."""


class PeerUnavailable(Refusal, code=Code.UNAVAILABLE, reason="PEER_UNAVAILABLE", retry_after_s=1.0):
    """A service that this call needs did not answer."""


class ReplicaStopping(Refusal, code=Code.UNAVAILABLE, reason="REPLICA_STOPPING", retry_after_s=0.1):
    """This replica is stopping; repeat the call, another replica answers it."""


class ReplicaNotReady(
    Refusal, code=Code.UNAVAILABLE, reason="REPLICA_NOT_READY", retry_after_s=1.0
):
    """This replica has just started and cannot serve yet; repeat the call, another one may."""


class Paused(Refusal, code=Code.UNAVAILABLE, reason="PAUSED", retry_after_s=30.0):
    """An operator has paused this method; nothing was done, try again later."""


class DeadlineTooShort(Refusal, code=Code.DEADLINE_EXCEEDED, reason="DEADLINE_TOO_SHORT"):
    """Too little of the call's deadline is left to begin; nothing was written."""


class Internal(Refusal, code=Code.INTERNAL, reason="INTERNAL"):
    """An unexpected error; the log has more under the same error_id."""


class RemoteRefusal(Refusal):
    """A refusal that another service sent, with everything it contained.

    ``reason`` is empty if the service sent none (the transport failed).
    """

    def __init__(
        self,
        code: Code,
        reason: str,
        message: str,
        metadata: dict[str, str],
        *,
        fields: tuple[FieldViolation, ...] = (),
        quota: tuple[QuotaViolation, ...] = (),
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, **metadata)
        # Instance attributes shadow those of the class on purpose.
        self.code = code  # type: ignore[misc]
        self.reason = reason  # type: ignore[misc]
        self.retry_after_s = retry_after_s  # type: ignore[misc]
        self.fields = fields
        self.quota = quota
