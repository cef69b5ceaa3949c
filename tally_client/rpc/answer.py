"""Reads what a service answered to a call that failed: gRPC's code and the details of its status.

A status of Tally's has one ErrorInfo with domain ``tally``, and at most one each of BadRequest,
QuotaFailure and RetryInfo. ``common.rpc.status`` of the services writes it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

DOMAIN: Final = "tally"
DETAILS_KEY: Final = "grpc-status-details-bin"

CODES: Final = {code.value[0]: code for code in grpc.StatusCode if code is not grpc.StatusCode.OK}
"""gRPC's codes of failures, by their numbers in a google.rpc.Status."""


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """A field that is not valid, by its path in the request (``items[0].quantity``)."""

    field: str
    description: str


@dataclass(frozen=True, slots=True)
class QuotaViolation:
    """What ran out (``account:ada:KRW``), and by how much."""

    subject: str
    description: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What a service answered; ``reason`` is empty if none did, and the transport failed."""

    code: grpc.StatusCode
    reason: str
    message: str
    metadata: dict[str, str]
    fields: tuple[FieldViolation, ...] = ()
    quota: tuple[QuotaViolation, ...] = ()
    retry_after_s: float | None = None


def of_error(error: grpc.aio.AioRpcError) -> Answer:
    """The answer in gRPC's error."""
    return of_trailing(error.trailing_metadata() or (), error.code(), error.details() or "")


def of_trailing(
    metadata: Iterable[tuple[str, str | bytes]], code: grpc.StatusCode, message: str = ""
) -> Answer:
    """The same, from a call's trailing metadata and gRPC's own code and message."""
    for key, value in metadata:
        if key == DETAILS_KEY and isinstance(value, bytes):
            try:
                status = status_pb2.Status.FromString(value)
            except DecodeError:
                break
            return of_status(status, code)
    return Answer(code, "", message, {})


def of_status(status: status_pb2.Status, code: grpc.StatusCode) -> Answer:
    """The answer in a google.rpc.Status. Its code is ``code``, which gRPC sent itself.

    Details of other types or domains are ignored.
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
    own = info.domain == DOMAIN
    return Answer(
        code,
        info.reason if own else "",
        status.message,
        dict(info.metadata) if own else {},
        fields=tuple(FieldViolation(v.field, v.description) for v in bad_request.field_violations),
        quota=tuple(QuotaViolation(v.subject, v.description) for v in quota.violations),
        retry_after_s=retry_after_s,
    )
