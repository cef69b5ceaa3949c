"""The status of a refused call, compared as a whole with the expected one."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
from google.protobuf.message import Message
from google.rpc import (  # type: ignore[import-untyped]  # ships stubs without py.typed
    error_details_pb2,
    status_pb2,
)

DETAILS: Final = (
    error_details_pb2.ErrorInfo,
    error_details_pb2.BadRequest,
    error_details_pb2.QuotaFailure,
    error_details_pb2.RetryInfo,
)
LEAKS: Final = re.compile(
    r"""
      \b(SELECT|INSERT|UPDATE|DELETE|FROM|WHERE|RETURNING|unnest|SQLSTATE|pg_\w+)\b
    | asyncpg | sqlalchemy | postgres | redis | valkey | psycopg | pydantic | protovalidate
    | grpc[._]aio | celpy | google\.protobuf | upb
    | Traceback | \bFile\s" | \.py\b | \bline\s\d+ | site-packages
    | \b[A-Z]\w*(Error|Exception|Request|Response|Violation)\b | object\sat\s0x | <class | NoneType
    | (^|[\s'"(=])/(work|home|tmp|usr|root|var|opt|etc)/ | 127\.0\.0\.1 | localhost | \[::1\]
    | tally_(balance|coupon|order|payment)_ | (template|test)_(balance|coupon|order|payment)_
    | (balance|coupon|order|payment)_service | [Cc]onstraint | _pkey | \bthis\.
    """,
    re.VERBOSE,
)
"""Words of a server's internals."""
CONTROL_CHARACTERS: Final = re.compile(r"[\x00-\x1f\x7f]")
BYTES_MAX: Final = 2_000


@dataclass(frozen=True)
class ExpectedStatus:
    """The status that a call must return. ``fields``: all that its BadRequest names, no other."""

    code: grpc.StatusCode
    reason: str
    fields: frozenset[str] = frozenset()
    names: str = ""
    """An id that must be in the metadata."""


def expected(code: str, reason: str, *fields: str, names: str = "") -> ExpectedStatus:
    return ExpectedStatus(grpc.StatusCode[code], reason, frozenset(fields), names)


def failed(reason: str, *fields: str) -> ExpectedStatus:
    return expected("FAILED_PRECONDITION", reason, *fields)


def not_found(reason: str, *fields: str, names: str = "") -> ExpectedStatus:
    return expected("NOT_FOUND", reason, *fields, names=names)


def invalid(*fields: str) -> ExpectedStatus:
    return ExpectedStatus(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", frozenset(fields))


BAD_TOKEN: Final = expected("INVALID_ARGUMENT", "INVALID_PAGE_TOKEN")
REUSED: Final = expected("INVALID_ARGUMENT", "REQUEST_ID_REUSED")
CURRENCY: Final = expected("INVALID_ARGUMENT", "CURRENCY_MISMATCH")
NOT_RETRYABLE: Final = failed("SAGA_NOT_RETRYABLE")
WHOLE_REQUEST: Final = invalid("request")
"""Bytes that are not a message, or a message beyond 64 KiB."""


@dataclass
class Status:
    """The status that a call returned."""

    code: grpc.StatusCode
    message: str
    details: list[Any] = field(default_factory=list)
    trailing: dict[str, Any] = field(default_factory=dict)
    size: int = 0

    @classmethod
    def of(cls, error: grpc.aio.AioRpcError) -> Status:
        code, message = error.code(), error.details() or ""
        trailing = dict(error.trailing_metadata() or ())
        raw = trailing.pop("grpc-status-details-bin", b"")
        status = status_pb2.Status.FromString(raw)
        assert not raw or (status.code, status.message) == (code.value[0], message)
        return cls(code, message, _unpacked(status), trailing, len(raw))

    @classmethod
    def of_item(cls, error: status_pb2.Status) -> Status | None:
        """The status of an item of a bulk call; None if it has no error."""
        if not error.code:
            return None
        [code] = [each for each in grpc.StatusCode if each.value[0] == error.code]
        # An item has no metadata of its own.
        return cls(code, error.message, _unpacked(error), {"tally-replica": ""}, error.ByteSize())

    def detail(self, kind: Any) -> Any:
        """The detail of this type, or an empty one."""
        return next((each for each in self.details if isinstance(each, kind)), kind())

    @property
    def reason(self) -> str:
        return str(self.detail(error_details_pb2.ErrorInfo).reason)

    def differences(self, expected: ExpectedStatus) -> list[str]:
        """How the status differs from the expected one; empty if it does not."""
        found = []
        info = self.detail(error_details_pb2.ErrorInfo)
        violations = self.detail(error_details_pb2.BadRequest).field_violations
        fields = {violation.field for violation in violations}
        kinds = [detail.DESCRIPTOR.name for detail in self.details]
        if (self.code, info.reason) != (expected.code, expected.reason):
            found.append(f"returned {self.code.name} {info.reason}: {self.message}")
        if fields != expected.fields or not all(each.description for each in violations):
            found.append(f"named {violations}, not {sorted(expected.fields)}")
        if expected.names and expected.names not in info.metadata.values():
            found.append(f"did not name {expected.names}: {info.metadata}")
        if info.domain != "tally" or len(set(kinds)) != len(kinds):
            found.append(f"details {kinds} of {info.domain!r}")
        if "tally-replica" not in self.trailing:
            found.append("no tally-replica")
        if self.code is grpc.StatusCode.INVALID_ARGUMENT and "RetryInfo" in kinds:
            found.append("RetryInfo for a call that cannot succeed")
        if self.size > BYTES_MAX:
            found.append(f"{self.size} bytes of details")
        return found + self.leaks()

    def texts(self) -> list[str]:
        """The message, and every string of the details."""
        return [self.message, *(text for detail in self.details for text in _strings(detail))]

    def leaks(self) -> list[str]:
        """What a client must not see: internals of a server, or control characters it sent."""
        texts = [*self.texts(), *map(str, self.trailing.values())]
        found = [(text, leak.group()) for text in texts for leak in LEAKS.finditer(text)]
        echoes = [f"echoes {text!r}" for text in texts if CONTROL_CHARACTERS.search(text)]
        return [f"leaks {leak!r} in {text!r}" for text, leak in found] + echoes


def _unpacked(status: status_pb2.Status) -> list[Any]:
    details = []
    for packed in status.details:
        (kind,) = [kind for kind in DETAILS if packed.Is(kind.DESCRIPTOR)]
        details.append(kind.FromString(packed.value))
    return details


def _strings(message: Message) -> list[str]:
    """Every string in a message, those of its messages included."""
    found: list[str] = []
    for descriptor, value in message.ListFields():
        if isinstance(value, str):
            found.append(value)
        elif descriptor.message_type is None:
            continue
        elif descriptor.message_type.GetOptions().map_entry:
            found += [*value, *value.values()]
        else:
            for each in value if descriptor.is_repeated else [value]:
                found += _strings(each)
    return found
