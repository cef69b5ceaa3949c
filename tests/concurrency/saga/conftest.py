"""The whole stack, with Redis and without."""

from __future__ import annotations

from tests.support.stack import (
    stack,
    stack_databases,
    stack_options,
)

__all__ = ["stack", "stack_databases", "stack_options"]
