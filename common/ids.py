"""Ids that a service makes: UUIDv7 (RFC 9562), so that new rows lie side by side in an index."""

from __future__ import annotations

import re
from typing import Final

import uuid_utils

_CANONICAL: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


def new_id() -> str:
    """A new UUIDv7 in its canonical form (36 characters, lower case)."""
    return str(uuid_utils.uuid7())


def is_id(text: str) -> bool:
    """Whether ``text`` has the form of an id made here. An id of another form is NOT_FOUND.

    Only the canonical form counts: PostgreSQL would also take braces, capitals and no dashes, and
    then one row would have several names, each with an idempotency of its own.
    """
    return _CANONICAL.fullmatch(text) is not None
