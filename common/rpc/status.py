"""The one table between refusals and gRPC statuses, in both directions.

A status has one ErrorInfo (domain ``tally``), and each of BadRequest, QuotaFailure and RetryInfo at
most once. It travels in the trailing metadata, of which clients take 8 KiB by default: a status
that is too large would reach them as another error, hence the limits here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import grpc
from google.protobuf.message import DecodeError
from google.rpc import (  # type: ignore[import-untyped]  # ships stubs without py.typed
    code_pb2,
    error_details_pb2,
    status_pb2,
)

from common.errors import Code, FieldViolation, QuotaViolation, Refusal, RemoteRefusal

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

DOMAIN: Final = "tally"
DETAILS_KEY: Final = "grpc-status-details-bin"

MESSAGE_BYTES_MAX: Final = 300
VALUE_BYTES_MAX: Final = 200
NAME_BYTES_MAX: Final = 80
DESCRIPTION_BYTES_MAX: Final = 120
METADATA_MAX: Final = 6
FIELDS_MAX: Final = 10
QUOTA_MAX: Final = 100
STATUS_BYTES_MAX: Final = 5_400
"""What all details together may come to; the list of what ran out gets what the others leave.

In base64, as most clients get it, and with the other trailers this comes to 7.7 KiB.
"""
_DETAIL_BYTES: Final = 80
"""What a detail costs besides its content: its type's name and some lengths."""

_CODES: Final = {grpc.StatusCode[code.name]: code for code in Code}
_NUMBERS: Final = {code: code_pb2.Code.Value(code.name) for code in Code}
GRPC_CODES: Final = {number: grpc.StatusCode[code.name] for code, number in _NUMBERS.items()}
"""gRPC's codes by the number that a google.rpc.Status has."""

PEER_UNAVAILABLE: Final = "PEER_UNAVAILABLE"
_PEER_SILENT: Final = "A service that this call needs did not answer."
_PEER_RETRY_AFTER_S: Final = 1.0

# A peer that said nothing itself may have died or been cut off at any point: whoever sends
# something that is safe to repeat may do so. Other bare codes (UNIMPLEMENTED, UNKNOWN,
# RESOURCE_EXHAUSTED for an oversized message) would only repeat themselves.
_REPEATABLE_WHEN_SILENT: Final = frozenset(
    {Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.CANCELLED, Code.ABORTED}
)


def is_retryable(refusal: Refusal) -> bool:
    """Whether the same call, sent again, may end otherwise: it carries RetryInfo or got no answer.

    It does not say that repeating is safe: after a lost answer the effect may have happened. With
    the same request_id it is, and every mutation takes one.
    """
    if refusal.retry_after_s is not None:
        return True
    return not refusal.reason and refusal.code in _REPEATABLE_WHEN_SILENT


def to_status(refusal: Refusal) -> status_pb2.Status:
    """The google.rpc.Status of a refusal.

    A peer's silence (a RemoteRefusal without reason) is told in our own words: the transport's
    name addresses.
    """
    if not refusal.reason:
        refusal = _peer_silent(refusal)
    status = status_pb2.Status(
        code=_NUMBERS[refusal.code], message=_cut(refusal.message, MESSAGE_BYTES_MAX)
    )
    metadata = list(refusal.metadata.items())[:METADATA_MAX]
    status.details.add().Pack(
        error_details_pb2.ErrorInfo(
            domain=DOMAIN,
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


def from_rpc_error(error: grpc.aio.AioRpcError) -> RemoteRefusal:
    """The refusal that a peer sent, or one with an empty reason if the peer itself said nothing."""
    return from_trailing(error.trailing_metadata() or (), error.code(), error.details() or "")


def from_trailing(
    metadata: Iterable[tuple[str, str | bytes]], number: grpc.StatusCode, message: str = ""
) -> RemoteRefusal:
    """As ``from_rpc_error``, of a call's trailing metadata and gRPC's own code and message."""
    code = _CODES.get(number, Code.UNKNOWN)
    for key, value in metadata:
        if key == DETAILS_KEY and isinstance(value, bytes):
            try:
                status = status_pb2.Status.FromString(value)
            except DecodeError:
                break
            return from_status(status, code)
    return RemoteRefusal(code, "", message, {})


def from_status(status: status_pb2.Status, code: Code) -> RemoteRefusal:
    """The refusal in a google.rpc.Status; ``code``, gRPC's own, is the one that counts.

    Details of types or domains that are not ours are passed over.
    """
    info = error_details_pb2.ErrorInfo()
    bad_request = error_details_pb2.BadRequest()
    quota = error_details_pb2.QuotaFailure()
    retry = error_details_pb2.RetryInfo()
    retry_after_s: float | None = None
    for detail in status.details:
        try:
            if detail.Unpack(retry):
                retry_after_s = retry.retry_delay.ToMilliseconds() / 1000
            elif not detail.Unpack(info) and not detail.Unpack(bad_request):
                detail.Unpack(quota)
        except DecodeError:
            continue
    ours = info.domain == DOMAIN
    return RemoteRefusal(
        code,
        info.reason if ours else "",
        status.message,
        dict(info.metadata) if ours else {},
        fields=tuple(FieldViolation(v.field, v.description) for v in bad_request.field_violations),
        quota=tuple(QuotaViolation(v.subject, v.description) for v in quota.violations),
        retry_after_s=retry_after_s,
    )


def _peer_silent(refusal: Refusal) -> Refusal:
    code = Code.UNAVAILABLE
    if refusal.code is Code.DEADLINE_EXCEEDED:
        code = Code.DEADLINE_EXCEEDED
    # What would only repeat itself is not to be sent again by every client of ours either.
    retry_after_s = _PEER_RETRY_AFTER_S if refusal.code in _REPEATABLE_WHEN_SILENT else None
    return RemoteRefusal(code, PEER_UNAVAILABLE, _PEER_SILENT, {}, retry_after_s=retry_after_s)


def _escaping(message: str) -> int:
    """What the message takes from the details by travelling a second time, percent-encoded.

    Two bytes more for each that is not printable ASCII; the details are four for three in base64.
    """
    escaped = sum(not 0x20 <= byte <= 0x7E or byte == 0x25 for byte in message.encode())
    return 3 * escaped // 2


def _bad_request(fields: Sequence[FieldViolation]) -> error_details_pb2.BadRequest:
    told = error_details_pb2.BadRequest()
    for violation in fields[:FIELDS_MAX]:
        told.field_violations.add(
            field=_cut(violation.field, NAME_BYTES_MAX),
            description=_cut(violation.description, DESCRIPTION_BYTES_MAX),
        )
    return told


def _quota_failure(
    quota: Sequence[QuotaViolation], bytes_max: int
) -> error_details_pb2.QuotaFailure:
    """What ran out, within ``bytes_max``: names count for more than words, so words go first."""
    told = error_details_pb2.QuotaFailure(
        violations=[
            error_details_pb2.QuotaFailure.Violation(
                subject=_cut(violation.subject, NAME_BYTES_MAX),
                description=_cut(violation.description, DESCRIPTION_BYTES_MAX),
            )
            for violation in quota[:QUOTA_MAX]
        ]
    )
    if told.ByteSize() > bytes_max:
        for violation in told.violations:
            violation.ClearField("description")
    while told.ByteSize() > bytes_max:
        told.violations.pop()
    return told


def _cut(text: str, bytes_max: int) -> str:
    raw = text.encode(errors="replace")
    if len(raw) <= bytes_max:
        return raw.decode()
    return raw[: bytes_max - 3].decode(errors="ignore") + "..."
