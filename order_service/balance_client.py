"""The client of the balance service: deductions that begin at the same time share one call.

A call costs this service and the other several times what one more item of a call does, and
sagas begin together: one batch of the order lane begins many. A deduction that is alone is a call
of its own, and no call is delayed to gather more: what the event loop begins in one turn goes
together.

A shared call is a bulk call, which waits for its slowest item, and behind the bulk calls of
others. So it has a short time limit, and after one that did not decide all of its items none is
shared for a while: neither a locked account nor a bulk job delays payments for longer.
"""

from __future__ import annotations

import asyncio
import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import grpc

from common import deadlines
from common.errors import Code, Refusal, RemoteRefusal, RequestInProgress
from common.identity.service_token import ServiceToken
from common.rpc import retry
from common.rpc.client import ServiceClient
from common.rpc.status import GRPC_CODES, from_status, is_retryable
from common.tasks import DetachedTasks
from tally.balance.v1 import balance_pb2 as pb
from tally.balance.v1.balance_pb2_grpc import BalanceServiceStub

SHARED_CALL_S: Final = 1.0
"""Time limit of a shared call. Shortly before, the service returns what is decided by then."""
SHARED_CALL_MAX: Final = 128
"""Deductions in one call."""
PAUSE_S: Final = 5.0
"""How long no call is shared after one that failed, or left items undecided."""


class _Alone(enum.Enum):
    """Instead of a reply: the deduction is to be called by itself."""

    ALONE = "alone"


_Reply: TypeAlias = pb.BatchWriteResult.Posted | Refusal | _Alone


@dataclass(eq=False, slots=True)
class _Deduction:
    request: pb.DeductBalanceRequest
    reply: asyncio.Future[_Reply] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class BalanceClient(ServiceClient[BalanceServiceStub]):
    """The stub of the balance service, and its deductions in shared calls."""

    def __init__(self, channel: grpc.aio.Channel, token: ServiceToken | None = None) -> None:
        super().__init__(channel, BalanceServiceStub, token)
        self._next: list[_Deduction] = []
        """Those that began in this turn of the event loop."""
        self._shared = DetachedTasks("shared_deductions")
        self._share_from_s = -math.inf
        """The event loop's time before which no call is shared."""

    async def deduct(
        self, request: pb.DeductBalanceRequest, *, limit_s: float, attempts_max: int
    ) -> None:
        """Carry a deduction out; arguments and errors as of ``call``.

        A shared call is one more attempt, the first: every repetition is a call of its own.
        """
        reply = await self._share(request)
        if isinstance(reply, pb.BatchWriteResult.Posted):
            return
        if isinstance(reply, Refusal):
            await retry.pause_after(reply, type(request).__name__)
        await self.call(
            self.stub.DeductBalance, request, limit_s=limit_s, attempts_max=attempts_max
        )

    async def _share(self, request: pb.DeductBalanceRequest) -> _Reply:
        loop = asyncio.get_running_loop()
        left_s = deadlines.remaining()
        # The call's time limit must be within that of each of its deductions.
        if loop.time() < self._share_from_s or (left_s is not None and left_s < SHARED_CALL_S):
            return _Alone.ALONE
        if not self._next:
            loop.call_soon(self._begin)
        deduction = _Deduction(request)
        self._next.append(deduction)
        return await deduction.reply

    def _begin(self) -> None:
        """Begin the calls of what came since the last turn."""
        begun, self._next = self._next, []
        try:
            for first in range(0, len(begun), SHARED_CALL_MAX):
                self._begin_call(begun[first : first + SHARED_CALL_MAX])
        except BaseException:
            # Nothing else would reply to those whose call has not begun. The event loop logs this.
            _reply_alone(begun)
            raise

    def _begin_call(self, together: Sequence[_Deduction]) -> None:
        if len(together) == 1:
            _reply_alone(together)
            return
        # Detached: one saga's deadline is not that of the others. The call can be in one trace
        # only, that of the first.
        self._shared.start(self._call(together))

    async def _call(self, together: Sequence[_Deduction]) -> None:
        replies: Sequence[_Reply] = [_Alone.ALONE] * len(together)
        try:
            response = await self.call(
                self.stub.BatchWrite,
                pb.BatchWriteRequest(
                    items=[pb.BatchWriteItem(deduct=one.request) for one in together]
                ),
                limit_s=SHARED_CALL_S,
                attempts_max=1,
            )
            if len(response.results) == len(together):
                replies = [_reply_of(result) for result in response.results]
        except Refusal as refusal:
            # A service that has no capacity, is stopping, or did not reply must not get as many
            # calls at once instead: each pauses first. Other refusals are of the call as such, and
            # of none of its items: an earlier release does not have the method.
            self._stop_sharing()
            if is_retryable(refusal):
                replies = [_copy(refusal) for _ in together]
        finally:
            if _Alone.ALONE in replies:
                self._stop_sharing()
            _tell(together, replies)

    def _stop_sharing(self) -> None:
        self._share_from_s = asyncio.get_running_loop().time() + PAUSE_S


def _copy(refusal: Refusal) -> Refusal:
    """The same refusal: an exception that several tasks raise collects the tracebacks of all."""
    return RemoteRefusal(
        refusal.code,
        refusal.reason,
        refusal.message,
        dict(refusal.metadata),
        fields=refusal.fields,
        quota=refusal.quota,
        retry_after_s=refusal.retry_after_s,
    )


def _reply_of(result: pb.BatchWriteResult) -> _Reply:
    if result.HasField("posted"):
        return result.posted
    code = GRPC_CODES.get(result.error.code)
    if code is None:
        # Neither posted nor refused, as of a release with other outcomes.
        return _Alone.ALONE
    refusal = from_status(result.error, Code[code.name])
    # It may still be decided. The call by itself finds that out, and need not pause for it.
    return _Alone.ALONE if refusal.reason == RequestInProgress.reason else refusal


def _reply_alone(together: Sequence[_Deduction]) -> None:
    _tell(together, [_Alone.ALONE] * len(together))


def _tell(together: Sequence[_Deduction], replies: Sequence[_Reply]) -> None:
    """Reply to those that still wait."""
    for one, reply in zip(together, replies, strict=True):
        if not one.reply.done():
            one.reply.set_result(reply)
