"""How calls end without a response: with a status, a counter and a log line."""

from __future__ import annotations

from typing import Final, NamedTuple, TypeAlias

import grpc
from google.protobuf.message import Message

from common import metrics
from common.errors import Code, PeerUnavailable
from common.identity.caller import Caller
from common.rpc.call_log import CallLog
from common.rpc.status import GRPC_CODES, retry_pushback, to_status
from common.rpc.unexpected import refusal_for
from tally_client.rpc.answer import DETAILS_KEY

Context: TypeAlias = grpc.aio.ServicerContext[bytes, bytes]

REPLICA_KEY: Final = "tally-replica"


class Call(NamedTuple):
    """A call that ends without a response."""

    method: str
    context: Context
    started: float
    """By ``time.perf_counter``."""
    request: Message | None = None
    """None if it was not valid or not read, or is a stream."""
    caller: Caller | None = None
    """None if it is not known, or the method is public."""


class CallEnds:
    """Ends the calls of one replica."""

    def __init__(self, replica: str, log: CallLog) -> None:
        self.trailing: Final = ((REPLICA_KEY, replica),)
        """Trailing metadata of every call."""
        self.unlogged: Final = set[str]()
        """Full names of the methods without log lines."""
        self._log = log

    async def abort(self, call: Call, error: BaseException) -> None:
        """End the call with the status of the error. Returns only if no status can be sent."""
        refusal = refusal_for(call.method, error)
        if refusal is None:
            return
        if isinstance(refusal, Code):
            self._count(call, refusal.value, "")
            return
        status = to_status(refusal)
        code = GRPC_CODES[status.code]
        self._count(call, code.name, refusal.reason or PeerUnavailable.reason)
        details = (DETAILS_KEY, status.SerializeToString())
        await call.context.abort(
            code, status.message, (*self.trailing, *retry_pushback(status), details)
        )

    def _count(self, call: Call, code: str, reason: str) -> None:
        metrics.CALLS.labels(call.method, code, reason).inc()
        if call.method not in self.unlogged:
            self._log.write(call.method, code, reason, call.started, call.request, call.caller)
