"""Makes request_ids."""

from __future__ import annotations

import uuid_utils


def new_request_id() -> str:
    """A new request_id: a UUIDv7 in its canonical form (36 characters, lower case)."""
    return str(uuid_utils.uuid7())
