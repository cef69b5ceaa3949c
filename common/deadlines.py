"""The deadline of the running call, in a ContextVar: how much time is left.

gRPC does not pass the deadline of an incoming call to the calls that it causes. So the handler sets
it here, and ``common.rpc.client`` and the lanes read it. It is a time on the event loop's clock,
which does not jump when the wall clock is set.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

from common.errors import Code, DeadlineTooShort, Refusal

CUT_OFF_SLACK_S: Final = 0.02
"""A call that is cancelled with at most this much time left was ended by its client's deadline. The
client's deadline is a little before the server's: gRPC sends the time left rounded up, to 10 ms if
it is some seconds, and the server counts from the arrival."""


class DeadlineExceeded(Refusal, code=Code.DEADLINE_EXCEEDED, reason="DEADLINE_EXCEEDED"):
    """The deadline passed; the call may have had its effect, repeat it with the same request_id."""


_deadline: ContextVar[float | None] = ContextVar("tally_deadline", default=None)


def start(left_s: float | None) -> None:
    """Set the running call's deadline, ``left_s`` seconds from now; None: no limit.

    It is never reset: each call runs in a task of its own, and the deadline ends with its context.
    """
    _deadline.set(None if left_s is None else asyncio.get_running_loop().time() + left_s)


def remaining() -> float | None:
    """Seconds left, never below 0; None if the running call has no limit."""
    at = _deadline.get()
    if at is None:
        return None
    return max(0.0, at - asyncio.get_running_loop().time())


def cut_off() -> bool:
    """Whether a cancelled call was cancelled by its deadline, not by a client that hung up."""
    left_s = remaining()
    return left_s is not None and left_s <= CUT_OFF_SLACK_S


def timeout_for(limit_s: float, *, least_s: float = 0.0) -> float:
    """The time limit of one step of the running call: ``limit_s``, or less if less is left.

    In seconds. Raises DeadlineTooShort if at most ``least_s`` is left.
    """
    left_s = remaining()
    if left_s is None:
        return limit_s
    if left_s <= least_s:
        raise DeadlineTooShort
    return min(limit_s, left_s)


@contextmanager
def within(limit_s: float | None) -> Iterator[None]:
    """Give the block a deadline of its own (None: no limit), instead of its caller's.

    For work that is detached from its caller, such as compensation: a caller's short deadline must
    not stop it.
    """
    at = None if limit_s is None else asyncio.get_running_loop().time() + limit_s
    token = _deadline.set(at)
    try:
        yield
    finally:
        _deadline.reset(token)
