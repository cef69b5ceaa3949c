"""How calls may end: each method's refusals, declared beside it with ``@refuses``.

What any call, any write, any list or any stream may be refused with is added here, by the method's
messages. docs/errors.md is written from this, and counters of calls begin with it, so that their
first event is an increase. The tests of the services find a refusal that is not declared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions

from common import metrics
from common.deadlines import DeadlineExceeded
from common.errors import (
    Code,
    ConflictRetriesExhausted,
    DatabaseUnavailable,
    DeadlineTooShort,
    Internal,
    InvalidFields,
    InvalidPageToken,
    Overloaded,
    Paused,
    RateLimited,
    Refusal,
    ReplicaNotReady,
    ReplicaStopping,
    RequestIdReused,
    RequestInProgress,
)
from common.identity.errors import (
    NotPermitted,
    TokenExpired,
    TokenInvalid,
    TokenMissing,
    TooManyBadTokens,
)
from common.rpc.access import callers_of
from common.rpc.bulk import is_bulk
from tally.options.v1 import access_pb2

F = TypeVar("F", bound=Callable[..., Any])

_NO_SIDE_EFFECTS: Final = MethodOptions.NO_SIDE_EFFECTS
_MARK: Final = "_tally_refuses"


class Reason(NamedTuple):
    """What a caller switches on."""

    code: Code
    reason: str
    """'' if gRPC itself ended the call."""


Declared: TypeAlias = type[Refusal] | Reason
"""A refusal of this service, or one that another service raises and this one passes on."""

ANY_CALL: Final = (
    InvalidFields,
    Overloaded,
    RateLimited,
    DatabaseUnavailable,
    ReplicaNotReady,
    Paused,
    DeadlineTooShort,
    DeadlineExceeded,
    Internal,
)
GUARDED: Final = (TokenMissing, TokenInvalid, TokenExpired, TooManyBadTokens, NotPermitted)
"""Of a method that is not public, where identity is on."""
WRITE: Final = (ConflictRetriesExhausted,)
"""Of a method that changes something."""
WITH_REQUEST_ID: Final = (RequestIdReused, RequestInProgress)
LIST: Final = (InvalidPageToken,)
STREAM: Final = (ReplicaStopping,)
ITEM: Final = (
    *(*WRITE, *WITH_REQUEST_ID),
    *(InvalidFields, Overloaded, RateLimited, DatabaseUnavailable, Internal),
)
"""Of any item of a bulk call."""
WITHOUT_STATUS: Final = (Reason(Code.CANCELLED, ""), Reason(Code.DEADLINE_EXCEEDED, ""))
"""The client is gone, or its deadline has passed: gRPC ends the call."""


class Refusals(NamedTuple):
    """What a method declares."""

    call: tuple[Declared, ...]
    items: tuple[Declared, ...]
    """Of single items of a bulk call."""


def refuses(*call: Declared, items: Iterable[Declared] = ()) -> Callable[[F], F]:
    """Declare the refusals of a servicer's method, besides those of ``common_to``.

    ``items``: those of single items of a bulk call, besides ITEM.
    """

    def mark(method: F) -> F:
        setattr(method, _MARK, Refusals(call, tuple(items)))
        return method

    return mark


def is_declared(method: object) -> bool:
    return hasattr(method, _MARK)


def declared(method: object) -> Refusals:
    """What a servicer's method declares; nothing if it declares none."""
    found: Refusals = getattr(method, _MARK, Refusals((), ()))
    return found


def common_to(method: MethodDescriptor) -> list[Reason]:
    """What any method with such messages may be refused with."""
    request = method.input_type.fields_by_name
    return _reasons(
        (
            *ANY_CALL,
            *(() if access_pb2.CALLER_PUBLIC in callers_of(method) else GUARDED),
            *(WRITE if method.GetOptions().idempotency_level != _NO_SIDE_EFFECTS else ()),
            *(WITH_REQUEST_ID if "request_id" in request else ()),
            *(LIST if "page_token" in request else ()),
            *(STREAM if method.server_streaming else ()),
        )
    )


def ends_of(path: str, method: object) -> list[Reason]:
    """All ends of calls of a method but OK. ``path``: its full name, as gRPC has it.

    Raises KeyError if the service of a .proto file has no such method.
    """
    service, _, name = path.removeprefix("/").partition("/")
    own = _reasons(declared(method).call)
    try:
        described = descriptor_pool.Default().FindServiceByName(service)
    except KeyError:  # a service that is not made from a .proto file
        return own
    return [*own, *common_to(described.methods_by_name[name]), *WITHOUT_STATUS]


def ends_of_items(method: object) -> list[Reason]:
    """All ends of items of a bulk method but OK."""
    return _reasons((*declared(method).items, *ITEM))


def count_from_zero(path: str, method: object) -> None:
    """Export a method's counters before its first call. ``path``: as of ``ends_of``."""
    metrics.UNEXPECTED.labels(path)
    for code, reason in ends_of(path, method):
        metrics.CALLS.labels(path, code.value, reason)
    if is_bulk(method):
        metrics.BULK_ITEMS.labels(path, "OK", "")
        for code, reason in ends_of_items(method):
            metrics.BULK_ITEMS.labels(path, code.value, reason)


def reason_of(refusal: Declared) -> Reason:
    """The code and reason of a declared refusal."""
    return refusal if isinstance(refusal, Reason) else Reason(refusal.code, refusal.reason)


def _reasons(refusals: Iterable[Declared]) -> list[Reason]:
    return [reason_of(each) for each in refusals]
