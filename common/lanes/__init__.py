"""Concurrent commands on one kind of aggregate, decided together.

Commands queue; one batch is in flight; while it commits, the next gathers; the next batch is all
that waits. An idle lane adds no delay: a batch of one is the plain case. So the cost of a
transaction is shared by everyone who would otherwise have queued for it, and the busier the rows,
the larger the share.

    submit ─► admit ─► Redis lock ─► BEGIN ─► decide: rows, replay, model, save ─► COMMIT ─► answer

A service gives the lane one function, ``decide``, that meets the four inner steps with set-based
statements and returns one outcome per command:

- any value: the caller's answer;
- a Refusal: the caller is refused, the others of the batch are not affected;
- ``Held(row)``: another transaction holds the row. The command waits for it apart from the lane,
  so that the rest of the batch and everyone after it goes on;
- ``Moved()``: the row changed since its version was read. The command goes round again.

The lane owns its tasks: a caller that goes away loses its answer, never the batch its commit.
"""

from common.lanes.entries import Decide, Held, Limits, Moved
from common.lanes.lane import Lane

__all__ = ["Decide", "Held", "Lane", "Limits", "Moved"]
