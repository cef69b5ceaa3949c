"""What a refused call told its client, checked whole: code, reason, fields, and nothing else."""

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
"""Words that only the inside of a server knows."""
BYTES_MAX: Final = 2_000


@dataclass(frozen=True)
class Expected:
    """What a call must be told. ``fields``: every field that its BadRequest names, no other."""

    code: grpc.StatusCode
    reason: str
    fields: frozenset[str] = frozenset()
    names: str = ""
    """An id that the metadata must name."""


@dataclass
class Told:
    """What a call was told."""

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

    @classmethod
    def by(cls, error: grpc.aio.AioRpcError) -> Told:
        told = cls(error.code(), error.details() or "")
        told.trailing = dict(error.trailing_metadata() or ())
        raw = told.trailing.pop("grpc-status-details-bin", None)
        told.texts = [told.message, *map(str, told.trailing.values())]
        if raw is None:
            return told
        status = status_pb2.Status.FromString(raw)
        assert (status.code, status.message) == (told.code.value[0], told.message)
        told.size = len(raw)
        for packed in status.details:
            (kind,) = [kind for kind in DETAILS if packed.Is(kind.DESCRIPTOR)]
            detail = kind()
            packed.Unpack(detail)
            told._take(detail)
        return told

    def _take(self, detail: Any) -> None:
        self.kinds.append(detail.DESCRIPTOR.name)
        self.texts += _texts(detail)
        if isinstance(detail, error_details_pb2.ErrorInfo):
            self.reason, self.domain = detail.reason, detail.domain
            self.metadata = dict(detail.metadata)
        elif isinstance(detail, error_details_pb2.BadRequest):
            self.fields = frozenset(violation.field for violation in detail.field_violations)
            assert all(violation.description for violation in detail.field_violations)

    def differences(self, expected: Expected) -> list[str]:
        """How this differs from what the contract says; empty if it does not."""
        found = []
        if (self.code, self.reason) != (expected.code, expected.reason):
            found.append(f"told {self.code.name} {self.reason}: {self.message}")
        if self.fields != expected.fields:
            found.append(f"named {sorted(self.fields)}, not {sorted(expected.fields)}")
        if expected.names and expected.names not in self.metadata.values():
            found.append(f"did not name {expected.names}: {self.metadata}")
        if expected.reason:
            found += self._oddities()
        return found + self.leaks()

    def _oddities(self) -> list[str]:
        """What is wrong with any refusal that a service itself makes."""
        found = []
        if self.domain != "tally" or len(set(self.kinds)) != len(self.kinds):
            found.append(f"details {self.kinds} of {self.domain!r}")
        if "tally-replica" not in self.trailing:
            found.append("no tally-replica")
        if self.code is grpc.StatusCode.INVALID_ARGUMENT and "RetryInfo" in self.kinds:
            found.append("asks to repeat what cannot succeed")
        if self.size > BYTES_MAX:
            found.append(f"{self.size} bytes of details")
        return found

    def leaks(self) -> list[str]:
        """What a client must not see: the inside of a server, or control characters sent to it."""
        return [
            f"leaks {leak.group()!r} in {text!r}"
            for text in self.texts
            for leak in LEAKS.finditer(text)
        ] + [f"echoes {text!r}" for text in self.texts if re.search(r"[\x00-\x1f\x7f]", text)]


def _texts(message: Message) -> list[str]:
    """Every string in a message, its own messages' included."""
    found: list[str] = []
    for descriptor, value in message.ListFields():
        if isinstance(value, str):
            found.append(value)
        elif descriptor.message_type is None:
            continue
        elif descriptor.message_type.GetOptions().map_entry:
            found += [*value, *value.values()]
        else:
            for each in value if isinstance(value, list) or hasattr(value, "append") else [value]:
                found += _texts(each)
    return found


def invalid(*fields: str) -> Expected:
    return Expected(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", frozenset(fields))


def not_found(reason: str, names: str = "") -> Expected:
    return Expected(grpc.StatusCode.NOT_FOUND, reason, names=names)


BAD_TOKEN: Final = Expected(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_PAGE_TOKEN")
REUSED: Final = Expected(grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_ID_REUSED")
CURRENCY: Final = Expected(grpc.StatusCode.INVALID_ARGUMENT, "CURRENCY_MISMATCH")
TOO_LARGE: Final = invalid("request")
"""A message beyond 64 KiB."""
