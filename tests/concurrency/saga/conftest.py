"""The whole stack, with Redis and without."""

from __future__ import annotations

from tests.support.stack import (
    gateway,
    stack,
    stack_databases,
    stack_options,
    stack_redis_url,
)

__all__ = ["gateway", "stack", "stack_databases", "stack_options", "stack_redis_url"]
