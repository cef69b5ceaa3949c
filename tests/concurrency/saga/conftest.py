"""The whole stack, with Redis and without."""

from __future__ import annotations

from tests.support.stack import no_faults, stack, stack_databases, stack_options

__all__ = ["no_faults", "stack", "stack_databases", "stack_options"]
