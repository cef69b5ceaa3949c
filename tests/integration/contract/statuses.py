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


def expected(code: str, reason: str, names: str = "") -> ExpectedStatus:
    return ExpectedStatus(grpc.StatusCode[code], reason, names=names)


def failed(reason: str) -> ExpectedStatus:
    return expected("FAILED_PRECONDITION", reason)


def not_found(reason: str, names: str = "") -> ExpectedStatus:
    return expected("NOT_FOUND", reason, names)


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
    reason: str = ""
    domain: str = ""
    fields: frozenset[str] = frozenset()
    metadata: dict[str, str] = field(default_factory=dict)
    kinds: list[str] = field(default_factory=list)
    trailing: dict[str, Any] = field(default_factory=dict)
    size: int = 0
    texts: list[str] = field(default_factory=list)
    """Every text in it that a client can read."""

    @classmethod
    def of(cls, error: grpc.aio.AioRpcError) -> Status:
        found = cls(error.code(), error.details() or "")
        found.trailing = dict(error.trailing_metadata() or ())
        raw = found.trailing.pop("grpc-status-details-bin", None)
        found.texts = [found.message, *map(str, found.trailing.values())]
        if raw is None:
            return found
        status = status_pb2.Status.FromString(raw)
        assert (status.code, status.message) == (found.code.value[0], found.message)
        found.size = len(raw)
        for packed in status.details:
            (kind,) = [kind for kind in DETAILS if packed.Is(kind.DESCRIPTOR)]
            detail = kind()
            packed.Unpack(detail)
            found._add(detail)
        return found

    def _add(self, detail: Any) -> None:
        self.kinds.append(detail.DESCRIPTOR.name)
        self.texts += _texts(detail)
        if isinstance(detail, error_details_pb2.ErrorInfo):
            self.reason, self.domain = detail.reason, detail.domain
            self.metadata = dict(detail.metadata)
        elif isinstance(detail, error_details_pb2.BadRequest):
            self.fields = frozenset(violation.field for violation in detail.field_violations)
            assert all(violation.description for violation in detail.field_violations)

    def differences(self, expected: ExpectedStatus) -> list[str]:
        """How the status differs from the expected one; empty if it does not."""
        found = []
        if (self.code, self.reason) != (expected.code, expected.reason):
            found.append(f"returned {self.code.name} {self.reason}: {self.message}")
        if self.fields != expected.fields:
            found.append(f"named {sorted(self.fields)}, not {sorted(expected.fields)}")
        if expected.names and expected.names not in self.metadata.values():
            found.append(f"did not name {expected.names}: {self.metadata}")
        if self.domain != "tally" or len(set(self.kinds)) != len(self.kinds):
            found.append(f"details {self.kinds} of {self.domain!r}")
        if "tally-replica" not in self.trailing:
            found.append("no tally-replica")
        if self.code is grpc.StatusCode.INVALID_ARGUMENT and "RetryInfo" in self.kinds:
            found.append("RetryInfo for a call that cannot succeed")
        if self.size > BYTES_MAX:
            found.append(f"{self.size} bytes of details")
        return found + self.leaks()

    def leaks(self) -> list[str]:
        """What a client must not see: internals of a server, or control characters it sent."""
        return [
            f"leaks {leak.group()!r} in {text!r}"
            for text in self.texts
            for leak in LEAKS.finditer(text)
        ] + [f"echoes {text!r}" for text in self.texts if CONTROL_CHARACTERS.search(text)]


def _texts(message: Message) -> list[str]:
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
                found += _texts(each)
    return found
