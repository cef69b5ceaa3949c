"""Converts refusals to gRPC statuses and back.

A status has one ErrorInfo (domain ``tally``), and at most one each of BadRequest, QuotaFailure and
RetryInfo. It is sent in the trailing metadata, of which clients accept 8 KiB by default. A client
would get another error instead of a status that is too large, hence the limits here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import grpc
from google.rpc import code_pb2, error_details_pb2, status_pb2  # type: ignore[import-untyped]

from common.errors import (
    Code,
    FieldViolation,
    PeerUnavailable,
    QuotaViolation,
    Refusal,
    RemoteRefusal,
)
from tally_client.rpc import answer

PUSHBACK_KEY: Final = "grpc-retry-pushback-ms"
"""What gRPC's own retries read (gRFC A6); they ignore RetryInfo."""

MESSAGE_BYTES_MAX: Final = 300
VALUE_BYTES_MAX: Final = 200
NAME_BYTES_MAX: Final = 80
DESCRIPTION_BYTES_MAX: Final = 120
METADATA_MAX: Final = 6
FIELDS_MAX: Final = 10
QUOTA_MAX: Final = 100
STATUS_BYTES_MAX: Final = 5_400
"""Size of the whole status. QuotaFailure gets what the other details leave.

In base64, as most clients get it, and with the other trailers this is 7.7 KiB.
"""
_DETAIL_BYTES: Final = 80
"""Size of a detail without its content: the name of its type, and lengths."""

_CODES: Final = {grpc.StatusCode[code.name]: code for code in Code}
_NUMBERS: Final = {code: code_pb2.Code.Value(code.name) for code in Code}
GRPC_CODES: Final = answer.CODES
"""gRPC's codes, by their numbers in a google.rpc.Status."""

PUSHBACK_MS_MAX: Final = 5_000
"""A longer RetryInfo is for people. A channel that waited for so long would hold its call until the
deadline passes, and its caller would get that instead of the refusal."""

# Codes without a reason, from the transport: the peer may have failed at any point, and another
# attempt may succeed. INTERNAL is what a proxy makes of a dead replica: it resets the stream. Other
# bare codes (UNIMPLEMENTED, UNKNOWN, RESOURCE_EXHAUSTED for a message that is too large) would come
# again.
_RETRYABLE_BARE_CODES: Final = frozenset(
    {Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.CANCELLED, Code.ABORTED, Code.INTERNAL}
)


def is_retryable(refusal: Refusal) -> bool:
    """Whether the same call may succeed when repeated: it has RetryInfo, or got no reply.

    This does not mean that repeating is safe: after a lost reply, the effect may have happened. A
    mutation is safe to repeat with the same request_id.
    """
    if refusal.retry_after_s is not None:
        return True
    return not refusal.reason and refusal.code in _RETRYABLE_BARE_CODES


def to_status(refusal: Refusal) -> status_pb2.Status:
    """The google.rpc.Status of a refusal.

    A RemoteRefusal without reason becomes PeerUnavailable: the transport's own message may
    contain addresses.
    """
    if not refusal.reason:
        refusal = _peer_unavailable(refusal)
    status = status_pb2.Status(
        code=_NUMBERS[refusal.code], message=_cut(refusal.message, MESSAGE_BYTES_MAX)
    )
    metadata = list(refusal.metadata.items())[:METADATA_MAX]
    status.details.add().Pack(
        error_details_pb2.ErrorInfo(
            domain=answer.DOMAIN,
            reason=refusal.reason,
            metadata={key: _cut(value, VALUE_BYTES_MAX) for key, value in metadata},
        )
    )
    if refusal.fields:
        status.details.add().Pack(_bad_request(refusal.fields))
    if refusal.retry_after_s is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(round(refusal.retry_after_s * 1000))
        status.details.add().Pack(retry)
    if refusal.quota:
        room = STATUS_BYTES_MAX - status.ByteSize() - _DETAIL_BYTES - _escaping(status.message)
        status.details.add().Pack(_quota_failure(refusal.quota, room))
    return status


def retry_pushback(status: status_pb2.Status) -> tuple[tuple[str, str], ...]:
    """Trailing metadata for gRPC's own retries: RetryInfo's delay in ms, or -1 for no retry.

    There is no retry after a delay above PUSHBACK_MS_MAX. The -1 is sent with UNAVAILABLE only.
    gRPC counts it as a failure when it throttles retries, and a request for more than is in stock
    is no failure.
    """
    for detail in status.details:
        retry = error_details_pb2.RetryInfo()
        if detail.Unpack(retry) and retry.retry_delay.ToMilliseconds() <= PUSHBACK_MS_MAX:
            return ((PUSHBACK_KEY, str(retry.retry_delay.ToMilliseconds())),)
    if GRPC_CODES[status.code] is grpc.StatusCode.UNAVAILABLE:
        return ((PUSHBACK_KEY, "-1"),)
    return ()


def from_rpc_error(error: grpc.aio.AioRpcError) -> RemoteRefusal:
    """The refusal that a peer sent; its reason is empty if the transport failed."""
    return _refusal(answer.of_error(error))


def from_trailing(
    metadata: Iterable[tuple[str, str | bytes]], number: grpc.StatusCode, message: str = ""
) -> RemoteRefusal:
    """The same, from a call's trailing metadata and gRPC's own code and message."""
    return _refusal(answer.of_trailing(metadata, number, message))


def from_status(status: status_pb2.Status, code: Code) -> RemoteRefusal:
    """The refusal in a google.rpc.Status. Its code is ``code``, which gRPC sent itself.

    Details of other types or domains are ignored.
    """
    return _refusal(answer.of_status(status, grpc.StatusCode[code]))


def _refusal(received: answer.Answer) -> RemoteRefusal:
    return RemoteRefusal(
        _CODES.get(received.code, Code.UNKNOWN),
        received.reason,
        received.message,
        received.metadata,
        fields=tuple(FieldViolation(v.field, v.description) for v in received.fields),
        quota=tuple(QuotaViolation(v.subject, v.description) for v in received.quota),
        retry_after_s=received.retry_after_s,
    )


def _peer_unavailable(refusal: Refusal) -> Refusal:
    peer = PeerUnavailable()
    late = refusal.code is Code.DEADLINE_EXCEEDED
    # A call that would fail again must not be repeated by the callers of this service either.
    again = refusal.code in _RETRYABLE_BARE_CODES
    return RemoteRefusal(
        refusal.code if late else peer.code,
        peer.reason,
        peer.message,
        {},
        retry_after_s=peer.retry_after_s if again else None,
    )


def _escaping(message: str) -> int:
    """Bytes of details that the message costs: gRPC sends it again, percent-encoded.

    Each byte that is not printable ASCII takes two more; base64 makes four bytes of three.
    """
    escaped = sum(not 0x20 <= byte <= 0x7E or byte == 0x25 for byte in message.encode())
    return 3 * escaped // 2


def _bad_request(fields: Sequence[FieldViolation]) -> error_details_pb2.BadRequest:
    detail = error_details_pb2.BadRequest()
    for violation in fields[:FIELDS_MAX]:
        detail.field_violations.add(
            field=_cut(violation.field, NAME_BYTES_MAX),
            description=_cut(violation.description, DESCRIPTION_BYTES_MAX),
        )
    return detail


def _quota_failure(
    quota: Sequence[QuotaViolation], bytes_max: int
) -> error_details_pb2.QuotaFailure:
    """The QuotaFailure within ``bytes_max``. Descriptions are dropped before subjects."""
    detail = error_details_pb2.QuotaFailure(
        violations=[
            error_details_pb2.QuotaFailure.Violation(
                subject=_cut(violation.subject, NAME_BYTES_MAX),
                description=_cut(violation.description, DESCRIPTION_BYTES_MAX),
            )
            for violation in quota[:QUOTA_MAX]
        ]
    )
    if detail.ByteSize() > bytes_max:
        for violation in detail.violations:
            violation.ClearField("description")
    while detail.ByteSize() > bytes_max:
        detail.violations.pop()
    return detail


def _cut(text: str, bytes_max: int) -> str:
    raw = text.encode(errors="replace")
    if len(raw) <= bytes_max:
        return raw.decode()
    return raw[: bytes_max - 3].decode(errors="ignore") + "..."
