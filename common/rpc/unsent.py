"""Responses that clients do not read: how many bytes of them a server keeps.

A call leaves its slot when its method returns. gRPC keeps the response until the client takes it,
and of a client that takes nothing one page after the other would wait here. Each client has a share
of the bytes, so that one that takes nothing does not keep others from reading.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

from google.protobuf.descriptor_pb2 import MethodOptions
from google.protobuf.message import Message

from common.errors import Overloaded
from common.rpc.access import method_of
from common.rpc.call_ends import Context
from common.rpc.client_address import ClientAddress
from common.rpc.shares import Shares

COUNTED_BYTES: Final = 1024
"""Smaller responses are not counted, which would cost each call something. An open call takes more
than ten times as much itself."""
UNSENT_BYTES_MAX: Final = 32 * 1024 * 1024
"""32 pages of the largest size. Python and gRPC have a copy each."""


class UnsentResponses:
    """The responses of one server that clients have not taken yet."""

    def __init__(self, addresses: ClientAddress) -> None:
        self._addresses = addresses
        self._bytes = Shares()

    def counted(
        self, method: str, serialize: Callable[[Message], bytes]
    ) -> Callable[[Message, Context], bytes]:
        """How a method's response is serialized, and counted until its call ends.

        Beyond UNSENT_BYTES_MAX, and the client's share of them, it raises Overloaded, but of a
        method that writes: a refusal says that nothing was done.
        """
        refuses = _is_read(method)

        def serialize_and_count(response: Message, context: Context) -> bytes:
            raw = serialize(response)
            size = len(raw)
            if size > COUNTED_BYTES:
                client = self._addresses.share_of(context)
                if refuses and not self._bytes.has_room(client, size, UNSENT_BYTES_MAX):
                    raise Overloaded
                self._bytes.take(client, size)
                taken: Any = partial(self._taken, client, size)
                context.add_done_callback(taken)
            return raw

        return serialize_and_count

    def _taken(self, client: str, size: int, _context: object) -> None:
        self._bytes.give_back(client, size)


def _is_read(method: str) -> bool:
    """Whether the method writes nothing. True without a contract."""
    try:
        level = method_of(method).GetOptions().idempotency_level
    except TypeError:
        return True
    return level == MethodOptions.NO_SIDE_EFFECTS
