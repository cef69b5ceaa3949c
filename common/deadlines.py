"""How much time a call has left, known everywhere below its handler without being passed along.

gRPC does not carry a deadline from an incoming call to the calls that it causes. Here the pipeline
notes it in a ContextVar as a point on the event loop's clock, and ``common.rpc.client`` and the lanes
read it. A deadline on the loop's clock cannot jump when the wall clock is set.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

from common.errors import Code, DeadlineTooShort, Refusal

CUT_OFF_SLACK_S: Final = 0.02
"""How much a call may have left that its client has given up at its deadline. The client's comes a
little before the server's: gRPC sends the time left rounded up, to 10 ms where it is some
seconds, and it counts from when it has arrived."""


class DeadlineExceeded(Refusal):
    """The call's time ran out; it may have been carried out, repeat it with the same request_id."""

    code = Code.DEADLINE_EXCEEDED
    reason = "DEADLINE_EXCEEDED"


_deadline: ContextVar[float | None] = ContextVar("tally_deadline", default=None)


def start(left_s: float | None) -> None:
    """Notes that the running call has ``left_s`` seconds left; None: no limit.

    Not undone: each call runs in a task of its own, and the note ends with the task's context.
    """
    _deadline.set(None if left_s is None else asyncio.get_running_loop().time() + left_s)


def deadline() -> float | None:
    """The running call's deadline on ``loop.time()``'s clock, or None if it has no limit."""
    return _deadline.get()


def remaining() -> float | None:
    """Seconds left, never below 0; None if the running call has no limit."""
    at = _deadline.get()
    if at is None:
        return None
    return max(0.0, at - asyncio.get_running_loop().time())


def cut_off() -> bool:
    """Of a call that was cancelled: whether by its deadline, and not by a client that hung up."""
    left_s = remaining()
    return left_s is not None and left_s <= CUT_OFF_SLACK_S


def timeout_for(limit_s: float, *, least_s: float = 0.0) -> float:
    """The time limit in seconds for one step of the running call: its own limit or what is left.

    Raises DeadlineTooShort when no more than ``least_s`` is left: to begin would be in vain.
    """
    left_s = remaining()
    if left_s is None:
        return limit_s
    if left_s <= least_s:
        raise DeadlineTooShort
    return min(limit_s, left_s)


@contextmanager
def within(limit_s: float | None) -> Iterator[None]:
    """Gives the block a deadline of its own, None for none, whatever its caller's was.

    For work that is detached from its caller, such as compensation: a caller's short deadline must
    not stop it.
    """
    at = None if limit_s is None else asyncio.get_running_loop().time() + limit_s
    token = _deadline.set(at)
    try:
        yield
    finally:
        _deadline.reset(token)
