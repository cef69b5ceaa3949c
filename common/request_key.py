"""Identity, content and result of a request, as idempotency compares and repeats them. Pure."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, TypeVar

from pydantic_core import to_json

T_co = TypeVar("T_co", covariant=True)


class RequestKey(NamedTuple):
    """The scope in which a request_id is unique: a method and a user.

    ``scope`` is the user_id, or '' for an administrator's call.
    """

    method: str
    scope: str
    request_id: str


class IdempotentCommand(Protocol):
    """A command that is executed at most once per ``key``."""

    @property
    def key(self) -> RequestKey: ...

    @property
    def digest(self) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Result(Generic[T_co]):
    """The value a write returned, and whether an earlier call with the same request_id wrote it."""

    value: T_co
    replayed: bool = False


def digest_of(*content: str | int | bool | None) -> bytes:
    """A 16-byte fingerprint of a request's content: equal content, equal digest.

    ``content``: all fields after validation except the request_id, in a fixed order. Digests are
    stored: a change of the fields or their order makes every repeated request look reused.
    """
    # The bytes are those of the standard library's encoder, without spaces, in UTF-8.
    return hashlib.blake2b(to_json(content), digest_size=16).digest()
