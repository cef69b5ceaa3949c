"""How many streams of one server a client may have open.

A user is counted by his subject, a caller of public methods and of health by address. Services and
operators may open any number, and so may everyone where identity is off.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Final, TypeAlias

from common.errors import RateLimited
from common.identity.caller import Kind
from common.rpc.call_ends import Context
from common.rpc.client_address import ClientAddress
from common.rpc.guard import Admitted
from common.rpc.shares import Shares

USER_STREAMS_MAX: Final = 16
"""Open streams of a user at one server: each of several devices watches an order or two."""
RETRY_S: Final = 1.0
"""When a user with so many should try again: no event says when one of them ends."""

ShareOfStream: TypeAlias = Callable[[Admitted | None, Context, int], AbstractContextManager[None]]
"""Counts a stream while it is open, of so many slots. Raises Overloaded or RateLimited on entry."""


class StreamShares:
    """The open streams of one server, by client."""

    def __init__(self, addresses: ClientAddress) -> None:
        self._addresses = addresses
        self._exempt = Shares()
        self._public = Shares()
        self._users = Counter[str]()

    def of_exempt(
        self,
        admitted: Admitted | None,  # noqa: ARG002 - anyone may watch health
        context: Context,
        slots: int,
    ) -> AbstractContextManager[None]:
        """A share of the streams of health and reflection. Raises Overloaded."""
        return self._exempt.taken(self._addresses.share_of(context), slots)

    def of_caller(
        self, admitted: Admitted | None, context: Context, slots: int
    ) -> AbstractContextManager[None]:
        """A share of the other streams. Raises Overloaded and RateLimited."""
        if admitted is None:
            return nullcontext()
        if admitted.caller is not None:
            is_user = admitted.caller.kind is Kind.USER
            return self._of_user(admitted.caller.subject) if is_user else nullcontext()
        address = self._addresses.address_of(context)
        return nullcontext() if address is None else self._public.taken(address, slots)

    @contextmanager
    def _of_user(self, subject: str) -> Iterator[None]:
        if self._users[subject] >= USER_STREAMS_MAX:
            raise RateLimited(RETRY_S)
        self._users[subject] += 1
        try:
            yield
        finally:
            self._users[subject] -= 1
            if not self._users[subject]:
                del self._users[subject]
