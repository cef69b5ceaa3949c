"""What a key lock raises:

LockError
├── LockBusy          the wait limit passed
├── LockUnavailable   Redis failed, and the caller requires a lock
├── LockLost          the lease ended while the lock was held
└── LocksClosed       the locks were closed before the caller had one
InvalidLock (ValueError)   keys, wait or lease that no lock can have: a defect of the caller
"""

from __future__ import annotations


class LockError(Exception):
    """A lock was not taken, or not kept."""


class LockBusy(LockError):  # noqa: N818 - a state, not a fault
    """Others held the keys until the wait limit."""


class LockUnavailable(LockError):  # noqa: N818
    """Redis failed, sent no reply in time, or its circuit is open."""


class LockLost(LockError):  # noqa: N818
    """The lease ended, or another owner has a key. What was done since may not be committed."""


class LocksClosed(LockError):  # noqa: N818
    """The locks are closed, since the process ends. Another holder may still have the keys."""


class InvalidLock(ValueError):  # noqa: N818
    """No lock can have these keys, this wait or this lease."""
