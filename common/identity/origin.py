"""By whose call an effect came about: stored with each effect that a saga may have.

A request_id of the form ``<saga_id>:<step>`` alone does not prove that a saga made the call
(``common.rpc.reserved_ids``): where identity is off, anyone may send one.
"""

from __future__ import annotations

import enum

from common.identity.caller import running_caller


class Origin(enum.StrEnum):
    """What was known of the caller. Stored: values do not change.

    An effect that an earlier release stored has none.
    """

    SAGA = "SAGA"
    """The order service, by its identity: the call of a saga."""
    DIRECT = "DIRECT"
    """Another caller with an identity."""
    UNVERIFIED = "UNVERIFIED"
    """Identity was off, so it may have been anyone, the order service too."""


def origin_of_call() -> Origin:
    """The origin of what the running call does."""
    caller = running_caller()
    if caller is None:
        return Origin.UNVERIFIED
    return Origin.SAGA if caller.runs_sagas else Origin.DIRECT


def stored_origin(value: str | None) -> Origin | None:
    """The origin in a row; None if an earlier release stored it. Raises ValueError."""
    return None if value is None else Origin(value)
