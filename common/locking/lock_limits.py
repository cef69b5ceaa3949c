"""Which keys, waits and leases a key lock can have. All else is a defect of the caller."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from common.locking.key_scripts import has_slot
from common.locking.lock_errors import InvalidLock
from common.locking.redis import slot_of

LEASE_S: Final = 2.0
"""Longer than a transaction takes, shorter than anyone would want to wait for a dead replica."""
LEASE_LEAST_S: Final = 0.3
"""Three renewals in a lease, each with the time limit of a command."""
LEASE_MOST_S: Final = 600.0
WAIT_MOST_S: Final = 600.0
KEYS_MAX: Final = 128
KEY_BYTES_MAX: Final = 512


def check_lease(lease_s: float) -> None:
    """Raise InvalidLock for a lease that cannot be renewed in time, or that nobody would await."""
    if not LEASE_LEAST_S <= lease_s <= LEASE_MOST_S:
        raise InvalidLock(f"lease_s must be from {LEASE_LEAST_S:g} to {LEASE_MOST_S:g}")


def check_wait(wait_s: float, *, waits: bool) -> None:
    """Raise InvalidLock for a wait without a limit, or where nobody ``waits``."""
    if not waits and wait_s != 0.0:
        raise InvalidLock("wait_s must be 0: SIMPLE does not wait")
    if waits and not 0.0 < wait_s <= WAIT_MOST_S:
        raise InvalidLock(f"wait_s must be above 0 and at most {WAIT_MOST_S:g}")


def valid_keys(keys: Collection[str], *, one_slot: bool) -> tuple[str, ...]:
    """Sorted, each once. Raises InvalidLock. ``one_slot``: all have to be in one of a cluster."""
    if isinstance(keys, str):
        raise InvalidLock("keys must be a collection of keys")
    valid = tuple(sorted(set(keys)))
    if not 0 < len(valid) <= KEYS_MAX:
        raise InvalidLock(f"there must be 1 to {KEYS_MAX} keys")
    for key in valid:
        if not 0 < _size_of(key) <= KEY_BYTES_MAX:
            raise InvalidLock(f"a key must have 1 to {KEY_BYTES_MAX} bytes")
        if not has_slot(key):
            raise InvalidLock("a key may have braces only as one hash tag, {tag}")
    if one_slot and len(set(map(slot_of, valid))) > 1:
        raise InvalidLock("in a cluster, several keys need one hash tag")
    return valid


def _size_of(key: str) -> int:
    """In bytes of UTF-8."""
    try:
        return len(key.encode())
    except UnicodeEncodeError:
        raise InvalidLock("a key must be text that UTF-8 can encode") from None
