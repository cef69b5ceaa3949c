"""Ids that a service makes: UUIDv7 (RFC 9562), so that new rows lie side by side in an index."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final

import uuid_utils

_CANONICAL: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


_EPOCH: Final = datetime.fromtimestamp(0, UTC)
_US_NS: Final = 1_000


def new_id(*, at: datetime | None = None) -> str:
    """A new UUIDv7 in its canonical form (36 characters, lower case), of this time or of now."""
    if at is None:
        return str(uuid_utils.uuid7())
    nanoseconds = (at - _EPOCH) // timedelta(microseconds=1) * _US_NS
    return str(uuid_utils.uuid7(nanoseconds=nanoseconds))


def is_id(text: str) -> bool:
    """Whether ``text`` has the form of an id made here. An id of another form is NOT_FOUND.

    Only the canonical form counts: PostgreSQL would also take braces, capitals and no dashes, and
    then one row would have several names, each with an idempotency of its own.
    """
    return _CANONICAL.fullmatch(text) is not None
