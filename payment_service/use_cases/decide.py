"""The writes: what a batch of commands makes of the payments loaded for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Final

from pydantic import TypeAdapter
from sqlalchemy.ext.asyncio import AsyncConnection

from common.batching.outcomes import RowLocked
from common.db.errors import StaleRead
from common.db.idempotency import REFUSED, IdempotencyRecords, IdempotencyStore, Record
from common.errors import Refusal, RequestIdReused
from common.ids import new_id
from common.request_key import RequestKey
from payment_service import store
from payment_service.errors import PaymentInProgress, PaymentKeyUsed
from payment_service.locking import places
from payment_service.model import (
    PLANTED,
    CancelPayment,
    Command,
    Confirmation,
    ConfirmPayment,
    Payment,
    Settle,
    State,
    cancelled,
    declined,
)
from payment_service.tables import CANCEL_REQUEST_ONCE, KEY_ONCE, REQUEST_ONCE

_BODY: Final[TypeAdapter[Payment | None]] = TypeAdapter(Payment | None)


@dataclass(frozen=True, slots=True)
class Posted:
    """A call's answer: the payment, or None if there was none to cancel."""

    payment: Payment | None
    replayed: bool


@dataclass(frozen=True, slots=True)
class Open:
    """Something is left to do at the gateway before the call can be answered."""

    confirmation: Confirmation
    mine: bool
    """Whether it is this very call that has to do it; else somebody else is at it."""


@dataclass(frozen=True, slots=True)
class Settled:
    """What has become of the payment, or None if the claim is gone."""

    confirmation: Confirmation | None


def translate(constraint: str, command: Command) -> Refusal | None:
    """A violated constraint in the words of the contract."""
    if constraint == KEY_ONCE and isinstance(command, ConfirmPayment):
        return PaymentKeyUsed(payment_key=command.payment_key)
    if constraint == REQUEST_ONCE and isinstance(command, ConfirmPayment):
        return RequestIdReused(request_id=command.request_id)
    if constraint == CANCEL_REQUEST_ONCE and isinstance(command, CancelPayment):
        # Its first use is for another confirmation, and may have no answer yet.
        return RequestIdReused(request_id=command.request_id)
    return None


class Decider:
    """Steps 4 to 7 of the write path for payments."""

    def __init__(self, answers: IdempotencyStore, gateway: str, lease: timedelta) -> None:
        """``gateway``: the name stored with new payments. ``lease``: how long a holder has."""
        self._answers = answers
        self._gateway = gateway
        self._lease = lease

    async def __call__(
        self, connection: AsyncConnection, commands: Sequence[Command], *, wait_for_locks: bool
    ) -> list[Any]:
        """One batch: places and rows, then answers, then the model, then everything saved."""
        wanted = {place for command in commands for place in places(command)}
        taken = await store.lock_places(connection, wanted, wait_for_locks=wait_for_locks)
        loaded = await _load(connection, commands, wait_for_locks=wait_for_locks)
        book = await self._answers.open(
            connection, [key for command in commands for key in _keys(command)]
        )
        batch = _Batch(loaded, taken, book, self._gateway, self._lease)
        outcomes: list[Any] = [batch.outcome(command) for command in commands]
        await _save(connection, list(loaded.by_id.values()))
        await book.save(connection)
        return outcomes


async def _load(
    connection: AsyncConnection, commands: Sequence[Command], *, wait_for_locks: bool
) -> store.Loaded:
    return await store.load(
        connection,
        keys={one.payment_key for one in commands if isinstance(one, ConfirmPayment)},
        requests={_request(one) for one in commands if not isinstance(one, Settle)},
        ids={one.payment_id for one in commands if isinstance(one, Settle)},
        wait_for_locks=wait_for_locks,
    )


async def _save(connection: AsyncConnection, payments: list[Confirmation]) -> None:
    """Write what the batch changed. Raises Overtaken if somebody was first, unseen.

    That can only be where the locks were not: then the constraint and the conditional update tell.
    """
    # A freed key may be claimed anew by the same batch: deletions come first.
    freed = [one for one in payments if one.released]
    moved = [one for one in payments if one.changed and not one.new and not one.released]
    new = [one for one in payments if one.new]
    written = [
        *await store.free(connection, freed),
        *await store.save(connection, moved),
        *await store.add(connection, new),
    ]
    if len(written) != len(freed) + len(moved) + len(new):
        raise StaleRead


def _request(command: ConfirmPayment | CancelPayment) -> store.RequestId:
    """The confirmation that the command is about."""
    if isinstance(command, CancelPayment):
        return command.user_id, command.confirm_request_id
    return command.user_id, command.request_id


def _keys(command: Command) -> list[RequestKey]:
    match command:
        case ConfirmPayment():
            return [command.key]
        case CancelPayment():
            return [command.key, command.confirm_key]
        case Settle():
            return [command.confirm_key]


class _Batch:
    """The commands of one transaction against the payments loaded for them."""

    def __init__(
        self,
        loaded: store.Loaded,
        taken: set[int],
        book: IdempotencyRecords,
        gateway: str,
        lease: timedelta,
    ) -> None:
        self.loaded = loaded
        self._taken = taken
        self._book = book
        self._gateway = gateway
        self._lease = lease

    def outcome(self, command: Command) -> Posted | Open | Settled | Refusal | RowLocked:
        """Decide one command, in order of arrival."""
        held = self._held(command)
        if held is not None:
            return RowLocked(held)
        try:
            match command:
                case ConfirmPayment():
                    return self._claim(command)
                case Settle():
                    return self._settle(command)
                case CancelPayment():
                    return self._cancel(command)
        except Refusal as refusal:
            return refusal

    def _held(self, command: Command) -> int | str | None:
        for place in places(command):
            if place in self._taken:
                return place
        held = self.loaded.held
        match command:
            case ConfirmPayment():
                return held.get(command.payment_key) or held.get(_request(command))
            case CancelPayment():
                return held.get(_request(command))
            case Settle():
                return held.get(command.payment_id)

    # -- confirm -------------------------------------------------------------------------------

    def _claim(self, command: ConfirmPayment) -> Posted | Open:
        answer = self._book.get(command.key)
        if answer is not None:
            return _replay(answer, command)
        same = self.loaded.by_request.get(_request(command))
        if same is not None:
            same.check_same(command)
            if same.open:
                return Open(replace(same), mine=same.holder == command.holder)
            # Its answer is gone after 30 days; the payment is known for good.
            return Posted(same.told(), replayed=True)
        other = self.loaded.by_key.get(command.payment_key)
        if other is not None:
            refuse_key(other)
        claim = Confirmation.claim(command, new_id(), self._gateway, self.loaded.now, self._lease)
        self.loaded.add(claim)
        return Open(replace(claim), mine=True)

    # -- settle --------------------------------------------------------------------------------

    def _settle(self, command: Settle) -> Settled:
        confirmation = self.loaded.by_id.get(command.payment_id)
        if confirmation is None or confirmation.released:
            return Settled(None)
        planted = self._book.get(command.confirm_key)
        if planted is not None and planted.cancelled:
            # A claim that slipped past a cancellation before it, though their place should keep
            # them apart: the answers' own key is the last guard.
            confirmation.ask_cancel(PLANTED, None, command.holder, self.loaded.now, self._lease)
        confirmation.settle(command, self.loaded.now, self._lease)
        if confirmation.released:
            self.loaded.free(confirmation)
            return Settled(None)
        self._answer(confirmation, command)
        return Settled(replace(confirmation))

    def _answer(self, confirmation: Confirmation, command: Settle) -> None:
        """Store the confirmation's answer with its outcome, once, unless it is cancelled."""
        answered = self._book.get(command.confirm_key)
        payment = confirmation.payment
        if payment.state is State.CANCELLED:
            # Also where it was given back by other means than ours.
            if answered is None or not answered.cancelled:
                self._book.cancel(command.confirm_key)
        elif answered is None and payment.state in {State.CONFIRMED, State.DECLINED}:
            original = _Original(command.confirm_key, confirmation.digest)
            keep = self._book.answer if payment.state is State.CONFIRMED else self._book.refuse
            keep(original, _BODY.dump_json(payment).decode())

    # -- cancel --------------------------------------------------------------------------------

    def _cancel(self, command: CancelPayment) -> Posted | Open:
        answer = self._book.get(command.key)
        if answer is not None:
            return _replay(answer, command)
        planted = self._book.get(command.confirm_key)
        before = planted is not None and planted.cancelled
        confirmation = self.loaded.by_request.get(_request(command))
        if not before:
            # In the transaction of the wish, or alone: the confirmation, late or repeated, is
            # refused.
            self._book.cancel(command.confirm_key)
        if confirmation is None:
            # Its wish may have met a claim that never left, and is gone with it.
            return self._cancelled(command, None, replayed=before and not command.wished)
        confirmation.ask_cancel(
            command.reason, command.request_id, command.holder, self.loaded.now, self._lease
        )
        first = confirmation.cancel_request_id == command.request_id
        if first and confirmation.cancel_reason != command.reason:
            raise RequestIdReused(request_id=command.request_id)
        if not confirmation.open:
            replayed = before if confirmation.cancel_reason is None else not first
            return self._cancelled(command, confirmation.payment, replayed=replayed)
        mine = confirmation.take(command.holder, self.loaded.now, self._lease)
        # A snapshot: a later command of this batch may change the payment.
        return Open(replace(confirmation), mine=mine)

    def _cancelled(
        self, command: CancelPayment, payment: Payment | None, *, replayed: bool
    ) -> Posted:
        self._book.answer(command, _BODY.dump_json(payment).decode())
        return Posted(payment, replayed=replayed)


@dataclass(frozen=True, slots=True)
class _Original:
    """The request whose answer is stored when its outcome is known."""

    key: RequestKey
    digest: bytes


def _replay(answer: Record, command: ConfirmPayment | CancelPayment) -> Posted:
    if answer.cancelled:
        raise cancelled(command.user_id, command.request_id)
    payment = _BODY.validate_json(answer.body_for(command))
    if answer.state == REFUSED:
        assert payment is not None
        raise declined(payment)
    return Posted(payment, replayed=True)


def refuse_key(other: Confirmation) -> None:
    """Raise what another request is told of a key that is taken."""
    if other.payment.state in {State.PENDING, State.UNKNOWN}:
        raise PaymentInProgress(payment_key=other.payment.payment_key)
    raise PaymentKeyUsed(payment_key=other.payment.payment_key)
