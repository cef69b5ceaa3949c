"""The calls: from the claim over the gateway to the answer, and the reads.

What a call begins at the gateway runs detached from it. A caller who hangs up or whose deadline
passes stops nothing, and hears the outcome by the same request_id.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final

from common import deadlines
from common.batching.lane import Lane
from common.batching.outcomes import Limits
from common.db.engines import Database, reading
from common.db.idempotency import IdempotencyStore
from common.errors import DeadlineTooShort, InvalidPageToken, Refusal, RequestInProgress
from common.ids import is_id
from common.locking.locks import NoLocks
from common.locking.marks import InProgressMarks
from common.paging import Page
from common.request_key import RequestKey
from common.tasks import DetachedTasks, finished_within, result_of
from payment_service import store
from payment_service.errors import (
    GatewayUnavailable,
    PaymentInProgress,
    PaymentNotFound,
    PaymentOutcomeUnknown,
)
from payment_service.gateway import Gateway, NotSent, Rejected
from payment_service.locking import BATCH_MAX, ROUNDS_MAX, mark_of
from payment_service.model import (
    BEGINNING,
    CancelPayment,
    Command,
    Confirmation,
    ConfirmPayment,
    Payment,
    State,
)
from payment_service.tables import answers
from payment_service.use_cases.decide import Decider, Open, Posted, refuse_key, translate
from payment_service.use_cases.resolver import Resolver

WAIT_S_MAX: Final = 5.0
"""How long a call waits for what another one has begun."""
_MARGIN_S: Final = 0.1
"""Left of a deadline for telling the caller that the wait was in vain."""
_LEAST_S: Final = 0.02
_POLL_S: Final = 0.01
_POLL_S_MAX: Final = 0.2
_FIRST_TRY_S: Final = 0.05
_MICROSECOND: Final = timedelta(microseconds=1)
_NEWEST: Final = (datetime.max.replace(tzinfo=UTC), "ffffffff-ffff-ffff-ffff-ffffffffffff")


class Payments:
    """All payments, seen from one replica."""

    def __init__(
        self,
        database: Database,
        gateway: Gateway,
        marks: InProgressMarks,
        *,
        lease_s: float,
        resolve_concurrency: int,
    ) -> None:
        lease = timedelta(seconds=lease_s)
        self._database = database
        self._answers = IdempotencyStore(answers)
        self._marks = marks
        self.lane: Lane[Command] = Lane(
            "payment",
            database,
            Decider(self._answers, gateway.name, lease),
            NoLocks(),
            translate=translate,
            limits=Limits(batch_max=BATCH_MAX, rounds_max=ROUNDS_MAX),
        )
        self.resolver = Resolver(
            database, self.lane, gateway, lease=lease, concurrency=resolve_concurrency
        )
        self._calls = DetachedTasks("payments")
        self._running: dict[tuple[RequestKey, bytes], asyncio.Task[Posted | Open]] = {}

    async def close(self, grace_s: float) -> None:
        """Let what is at the gateway end, ``grace_s`` at most, then what is being stored.

        One grace for the calls and for what they leave to the resolver: whoever stops a replica
        counts it once.
        """
        clock = asyncio.get_running_loop().time
        until = clock() + grace_s
        await self._calls.close(grace_s)
        await self.resolver.close(max(0.0, until - clock()))
        await self.lane.close()

    # -- confirm -------------------------------------------------------------------------------

    async def confirm(self, command: ConfirmPayment) -> Posted:
        """Charge the key, or replay what became of this request.

        Raises PaymentDeclined, PaymentCancelled, PaymentInProgress, PaymentKeyUsed,
        GatewayUnavailable, PaymentOutcomeUnknown, RequestInProgress, RequestIdReused, or what the
        lane raises.
        """
        until = _wait_until()
        name = (command.key, command.digest)
        while True:
            running = self._running.get(name)
            if running is not None:
                if not await finished_within(running, _left_s(until)):
                    raise RequestInProgress(request_id=command.request_id)
                continue  # what came of it, the database tells
            _check_time()
            task = self._calls.begin(self._attempt(command))
            self._running[name] = task
            task.add_done_callback(lambda _: self._running.pop(name))
            outcome = await result_of(task)
            if isinstance(outcome, Posted):
                return outcome
            await self._confirmed(outcome.confirmation, until)

    async def _attempt(self, command: ConfirmPayment) -> Posted | Open:
        """Claim the key and charge it; ``Open`` if somebody else is at it for this request."""
        mark = mark_of(command)
        if await self._marks.begin(mark, command.holder) is not None:
            told = await self._look(command)
            if told is not None:
                return told
        claimed: Posted | Open = await self.lane.submit(command)
        if isinstance(claimed, Posted) or not claimed.mine:
            return claimed
        try:
            settled = await self.resolver.charge(claimed.confirmation)
        except Refusal:
            # Charged perhaps, and the database is away: by no means GATEWAY_UNAVAILABLE.
            raise _unknown(claimed.confirmation) from None
        confirmation = settled.confirmation
        if confirmation is None:
            await self._marks.clear(mark, command.holder)
            raise GatewayUnavailable(payment_key=command.payment_key)
        if confirmation.open and confirmation.holder == command.holder:
            self._calls.begin(self._try_on(confirmation))
        if confirmation.payment.state is State.UNKNOWN:
            raise _unknown(confirmation)
        await self._marks.done(mark, confirmation.payment.payment_id)
        return Posted(confirmation.told(), replayed=False)

    async def _look(self, command: ConfirmPayment) -> Posted | None:
        """The first line: what a marked key's row says without a transaction, if it says enough.

        The mark itself decides nothing. Without a row, or with the caller's own under way, the
        claim goes its usual way.
        """
        async with reading(self._database) as connection:
            book = await self._answers.open(connection, [command.key])
            same, other = await store.read_claims(connection, command)
        if book.get(command.key) is not None:
            return None
        if same is not None:
            same.check_same(command)
            return None if same.open else Posted(same.told(), replayed=True)
        if other is not None:
            refuse_key(other)
        return None

    async def _try_on(self, confirmation: Confirmation) -> None:
        """The first try at an unknown outcome, by the replica that has it at hand."""
        await asyncio.sleep(_FIRST_TRY_S)
        self.resolver.begin(confirmation)  # in the place that was reserved for it

    async def _confirmed(self, seen: Confirmation, until: float) -> None:
        """Wait until somebody else's attempt at this request has an outcome.

        Raises RequestInProgress or PaymentOutcomeUnknown when the time is over.
        """
        last = await self._watch(seen, until)
        if last is None:
            return
        if last.payment.state is State.UNKNOWN:
            raise _unknown(last)
        raise RequestInProgress(request_id=last.request_id)

    async def _watch(self, seen: Confirmation, until: float) -> Confirmation | None:
        """Wait until nothing is left to do; returns the payment as last seen if time runs out."""
        pause_s = _POLL_S
        while (left_s := _left_s(until)) > 0:
            await asyncio.sleep(min(pause_s, left_s))
            pause_s = min(pause_s * 1.5, _POLL_S_MAX)
            async with reading(self._database) as connection:
                found = await store.read(connection, seen.payment.payment_id)
            if found is None or not found.open:
                return None
            seen = found
        return seen

    # -- cancel --------------------------------------------------------------------------------

    async def cancel(self, command: CancelPayment) -> Posted:
        """Undo a confirmation, or keep it from ever happening; or replay that.

        Raises PaymentInProgress, PaymentOutcomeUnknown, GatewayUnavailable, RequestIdReused, or
        what the lane raises. The wish itself is stored before any of the first three.
        """
        until = _wait_until()
        while True:
            _check_time()
            outcome = await result_of(self._calls.begin(self._undo(command)))
            if isinstance(outcome, Posted):
                return outcome
            command = _noted(command, outcome.confirmation)
            last = await self._watch(outcome.confirmation, until)
            if last is None:
                continue
            if last.payment.state is State.PENDING:
                raise PaymentInProgress(payment_key=last.payment.payment_key)
            raise _unknown(last)

    async def _undo(self, command: CancelPayment) -> Posted | Open:
        """Store the wish and carry it out; ``Open`` if somebody else is at the payment."""
        asked: Posted | Open = await self.lane.submit(command)
        if isinstance(asked, Posted) or not asked.mine:
            return asked
        outcome, settled = await self.resolver.work(asked.confirmation)
        left = settled.confirmation
        if left is not None and left.open and left.holder is None:
            # Put off: the sweep tries again, and so does whoever repeats the call.
            if isinstance(outcome, NotSent | Rejected):
                raise GatewayUnavailable(payment_id=left.payment.payment_id)
            raise _unknown(left)
        done: Posted | Open = await self.lane.submit(_noted(command, asked.confirmation))
        return done

    # -- reads ---------------------------------------------------------------------------------

    async def get(self, payment_id: str, user_id: str) -> Payment:
        """The payment as last committed. Raises PaymentNotFound."""
        found = None
        if is_id(payment_id):
            async with reading(self._database) as connection:
                found = await store.read(connection, payment_id)
        if found is None or found.payment.user_id != user_id:
            named = {"payment_id": payment_id} if is_id(payment_id) else {}
            raise PaymentNotFound(user_id=user_id, **named)
        return found.payment

    async def list_payments(
        self, user_id: str, order_id: str | None, page: Page
    ) -> tuple[list[Payment], str]:
        """A page of a user's payments, newest first, and the next page's token ('' at the end)."""
        before = _before(page)
        async with reading(self._database) as connection:
            found = await store.read_newest(
                connection, user_id, order_id, before=before, size=page.size + 1
            )
        if len(found) <= page.size:
            return found, ""
        found = found[: page.size]
        last = found[-1]
        return found, page.token([(last.create_time - BEGINNING) // _MICROSECOND, last.payment_id])


def _before(page: Page) -> tuple[datetime, str]:
    """Older than what the page begins. Raises InvalidPageToken for a token nobody gave out."""
    if page.after is None:
        return _NEWEST
    micros, payment_id = page.after
    if not is_id(str(payment_id)):
        raise InvalidPageToken
    try:
        return BEGINNING + int(micros) * _MICROSECOND, str(payment_id)
    except OverflowError:
        raise InvalidPageToken from None


def _noted(command: CancelPayment, seen: Confirmation) -> CancelPayment:
    """The command, knowing whether the wish stored at the payment is its own."""
    return replace(command, wished=seen.cancel_request_id == command.request_id)


def _unknown(confirmation: Confirmation) -> PaymentOutcomeUnknown:
    return PaymentOutcomeUnknown(payment_id=confirmation.payment.payment_id)


def _wait_until() -> float:
    """The loop's time until which this call waits for others."""
    now = asyncio.get_running_loop().time()
    left_s = deadlines.remaining()
    return now + (WAIT_S_MAX if left_s is None else min(WAIT_S_MAX, left_s - _MARGIN_S))


def _left_s(until: float) -> float:
    return until - asyncio.get_running_loop().time()


def _check_time() -> None:
    """Nothing is begun for a caller who will not be there: detached work knows no deadline."""
    left_s = deadlines.remaining()
    if left_s is not None and left_s < _LEAST_S:
        raise DeadlineTooShort
