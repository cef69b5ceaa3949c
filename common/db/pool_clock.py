"""The clock of SQLAlchemy's pools: monotonic, as every interval is measured here.

A pool compares the time at which it was invalidated, and the age of a connection, with
``time.time()``. If the wall clock is set back by an hour after an invalidation, each use of a
connection opens a new one for that hour; if it is set forward, all connections are too old at once.
There is no setting for it.
"""

from __future__ import annotations

import time
from types import SimpleNamespace

from sqlalchemy.pool import base


def use_monotonic_clock() -> None:
    """Let all pools of the process measure with the monotonic clock. Call it before they exist."""
    # The module uses this one function of ``time``; its times are compared with each other only.
    base.time = SimpleNamespace(time=time.monotonic)  # type: ignore[assignment, attr-defined]
