"""What Tally uses of redis-py, imported without OpenTelemetry.

Where OpenTelemetry is installed, redis-py imports its metrics, in case that somebody turns them on.
Nobody does here: each replica would only take longer to start and hold some megabytes more, with
tracing off too. As if it were not installed, which redis-py is made for.
"""

from __future__ import annotations

import sys
from typing import Final

_HIDDEN: Final = "opentelemetry"

_loaded = sys.modules.get(_HIDDEN)
sys.modules[_HIDDEN] = None  # type: ignore[assignment]  # how Python is told that it is not there
try:
    from redis.asyncio import ConnectionPool, Redis
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff
    from redis.exceptions import RedisError
finally:
    del sys.modules[_HIDDEN]
    if _loaded is not None:
        sys.modules[_HIDDEN] = _loaded

__all__ = ["ConnectionPool", "NoBackoff", "Redis", "RedisError", "Retry"]
