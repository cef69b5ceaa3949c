"""The queues of tickets in Redis, as typed calls. PostgreSQL checks all that is read from here."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final

import structlog
from redis.asyncio import Redis, RedisCluster

from common.ids import is_id
from common.locking.redis import (
    RedisCalls,
    RedisUnavailable,
    Script,
    UnexpectedReply,
    eviction_policies,
    open_redis,
)
from common.tasks import DetachedTasks, is_cancelled, result_of
from coupon_service.model.ticket import (
    QueueCoupon,
    QueuedTicket,
    Ticket,
    TicketState,
    is_ticket_id,
    partition_of,
    queue_of,
)
from coupon_service.store import queue_scripts as scripts

NO_EVICTION: Final = "noeviction"
TIMEOUT_S: Final = 1.0
"""Of a call: without its reply, a caller has no ticket."""
LOOK_UP_MAX: Final = 500
"""Tickets of one call."""
CLOSE_S: Final = 1.0
_QUEUE: Final = re.compile(r"[0-9a-f]{8}")
_CLIENT_ID: Final = re.compile(r"[A-Za-z0-9._:@-]{1,64}")
_NUMBER: Final = re.compile(r"[0-9]{1,15}")
_REASON: Final = re.compile(r"[A-Z][A-Z_]{0,63}")
_EPOCH: Final = datetime.fromtimestamp(0, UTC)
_US: Final = timedelta(microseconds=1)
_log = structlog.stdlib.get_logger()


@dataclass(frozen=True, slots=True)
class Enqueued:
    """The ticket of a user and campaign that waits."""

    ticket_id: str
    position: int
    request_id: str
    """Of the call that queued it."""


class QueueIsFull(Exception):  # noqa: N818 - a state, not a fault
    """As many tickets wait in the queue as it may have."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of a queue."""

    entry_id: str
    token: str
    """What it is finished by."""
    sequence: int
    ticket: QueuedTicket | None
    """None: it cannot be read, or belongs to another queue."""


@dataclass(frozen=True, slots=True)
class Head:
    """The first entries of a queue."""

    waiting: int
    """All entries of the queue."""
    age_s: float
    """How long the first entry has been waiting, by the server's clock."""
    entries: Sequence[Entry]


@dataclass(frozen=True, slots=True)
class Refused:
    """A ticket that no coupon is issued by, from this time of the database's clock on."""

    reason: str
    time: datetime


@dataclass(frozen=True, slots=True)
class IssuedBefore:
    """The user had the coupon already, by an earlier ticket of the same request."""

    ticket_id: str


FinalState = Refused | IssuedBefore


@dataclass(frozen=True, slots=True)
class Finished:
    """An entry whose ticket is decided."""

    entry: Entry
    final: FinalState | None = None
    """None: a coupon carries the ticket, or there is no ticket."""


Found = Ticket | IssuedBefore | None
"""A ticket that waits or was refused, the one whose coupon it has, or nothing in Redis."""


@asynccontextmanager
async def open_queues(url: str, *, waiting_max: int, keep: timedelta) -> AsyncIterator[Queues]:
    """The queues in the Redis at ``url``; with an empty URL every call raises RedisUnavailable.

    ``waiting_max``: tickets in one queue. ``keep``: how long a final state is kept, and a queue
    after its campaign has ended.
    """
    if not url:
        yield Queues(None, waiting_max=waiting_max, keep=keep)
        return
    async with open_redis(url, timeout_s=TIMEOUT_S) as redis:
        queues = Queues(redis, waiting_max=waiting_max, keep=keep)
        try:
            yield queues
        finally:
            await queues.close()


class Queues:
    """All queues. Each call raises RedisUnavailable; then it may have been carried out.

    A call that is cancelled goes on by itself (``open_redis`` says why).
    """

    def __init__(
        self, redis: Redis | RedisCluster | None, *, waiting_max: int, keep: timedelta
    ) -> None:
        self.waiting_max = waiting_max
        self.keep = keep
        self._numbers = itertools.count(1)
        self._tasks = DetachedTasks("queues")
        self._scripts: dict[str, Script] = {}
        self._redis = redis
        self._warned_of = {NO_EVICTION}
        self._calls = None
        if redis is not None:
            self._calls = RedisCalls(redis, "redis_queue_absent")
            for text in (
                scripts.ENQUEUE,
                scripts.ACTIVE,
                scripts.READ,
                scripts.LOOK_UP,
                scripts.FINISH,
            ):
                self._scripts[text] = Script(redis, text)

    async def close(self) -> None:
        """Wait a moment for calls in flight."""
        await self._tasks.close(CLOSE_S)

    async def check_eviction(self) -> None:
        """Warn if Redis would evict tickets when its memory is full: they are not a cache."""
        if self._redis is None:
            return
        policies = await result_of(self._tasks.start(_policies_of(self._redis)))
        if policies and policies not in ({NO_EVICTION}, self._warned_of):
            _log.warning("redis_evicts_tickets", policies=sorted(policies))
        self._warned_of = policies

    async def enqueue(self, command: QueueCoupon, ticket_id: str, end_time: datetime) -> Enqueued:
        """Queue the ticket, unless one of this user and campaign waits. Raises QueueIsFull.

        ``end_time``: of the campaign.
        """
        queue = queue_of(command.campaign_id)
        keys = scripts.queue_keys(partition_of(queue), queue)
        expire_at = (end_time + self.keep - _EPOCH) // timedelta(milliseconds=1)
        reply = await self._call(
            "enqueue_ticket",
            scripts.ENQUEUE,
            keys,
            *(queue, ticket_id, command.campaign_id, command.user_id, command.request_id),
            *(self.waiting_max, expire_at),
        )
        outcome, found, position, request_id = _sized(reply, 4)
        if outcome == "full" and found == ticket_id:
            raise QueueIsFull
        if outcome == "queued" and found != ticket_id:
            raise RedisUnavailable
        if (
            not isinstance(found, str)
            or not is_ticket_id(found)
            or not isinstance(request_id, str)
            or type(position) is not int
        ):
            raise RedisUnavailable
        return Enqueued(found, max(1, position), request_id)

    async def active(self, partition: int, count: int) -> list[str]:
        """Names of queues of the partition that have entries: all, or ``count`` of them."""
        keys = [scripts.active_key(partition)]
        names = await self._call("list_queues", scripts.ACTIVE, keys, count)
        return [
            name
            for name in names
            if isinstance(name, str) and _QUEUE.fullmatch(name) and partition_of(name) == partition
        ]

    async def read(self, queue: str, size: int) -> Head:
        """The first entries of the queue, up to ``size``."""
        keys = scripts.queue_keys(partition_of(queue), queue)[:1]
        waiting, now_ms, *read = await self._call("read_queue", scripts.READ, keys, size)
        texts = [text for text in read if isinstance(text, str)]
        if type(waiting) is not int or type(now_ms) is not int or len(texts) % 2:
            raise RedisUnavailable
        entries = [_entry(queue, *pair) for pair in zip(texts[::2], texts[1::2], strict=True)]
        age_s = _age_s(entries[0].entry_id, now_ms) if entries else 0.0
        return Head(waiting, age_s, entries)

    async def finish(self, queue: str, finished: Sequence[Finished]) -> None:
        """Remove entries that are decided. One that is not there any more is passed over."""
        partition = partition_of(queue)
        keys = scripts.queue_keys(partition, queue)
        arguments: list[str | int] = []
        for one in finished:
            entry, ticket = one.entry, one.entry.ticket
            arguments += [entry.entry_id, entry.token]
            if ticket is None:
                keys.append(scripts.final_key(partition, queue, ""))
                arguments += ["", "", 0, ""]
                continue
            keys.append(scripts.final_key(partition, queue, ticket.ticket_id))
            who = f"{ticket.request.campaign_id} {ticket.request.user_id}"
            final = "" if one.final is None else f"{who} {_final_text(one.final)}"
            arguments += [ticket.ticket_id, who, entry.sequence, final]
        keep_ms = self.keep // timedelta(milliseconds=1)
        await self._call("finish_tickets", scripts.FINISH, keys, queue, keep_ms, *arguments)

    async def look_up(self, queue: str, ticket_ids: Sequence[str]) -> list[Found]:
        """What is known of these tickets of one queue, in their order; LOOK_UP_MAX at most."""
        partition = partition_of(queue)
        _, tickets, _, counts, _ = scripts.queue_keys(partition, queue)
        finals = [scripts.final_key(partition, queue, ticket_id) for ticket_id in ticket_ids]
        keys = [tickets, counts, *finals]
        states = await self._call("look_up_tickets", scripts.LOOK_UP, keys, *ticket_ids)
        states = _sized(states, len(ticket_ids))
        return [
            _found(ticket_id, state) for ticket_id, state in zip(ticket_ids, states, strict=True)
        ]

    async def _call(
        self, operation: str, script: str, keys: Sequence[str], *arguments: str | int
    ) -> list[object]:
        """The script's reply without its number."""
        if self._calls is None:
            raise RedisUnavailable
        number = next(self._numbers)
        send = partial(self._scripts[script], keys, number, *arguments)
        reply = await result_of(
            self._tasks.start(
                _reply_to(self._calls.call(operation, send, partial(_own, number=number)))
            )
        )
        if reply is None:
            raise RedisUnavailable
        return reply


async def _policies_of(redis: Redis | RedisCluster) -> set[str]:
    """Empty if they are not known: Redis is away, or the user may not ask."""
    try:
        return await eviction_policies(redis)
    except Exception:  # noqa: BLE001 - the client has no list of what a reply raises
        return set()


async def _reply_to(call: Awaitable[list[object]]) -> list[object] | None:
    """None: Redis is unavailable. It is the outcome of a task, where an error would be logged."""
    try:
        return await call
    except RedisUnavailable:
        return None
    except asyncio.CancelledError:
        if is_cancelled():
            raise
        # The client's own future was cancelled, not this task.
        return None


def _own(reply: object, *, number: int) -> list[object]:
    """The reply to this command, without its number. Raises UnexpectedReply."""
    if not isinstance(reply, list) or not reply or reply[0] != number:
        raise UnexpectedReply
    return reply[1:]


def _sized(reply: list[object], size: int) -> list[object]:
    if len(reply) != size:
        raise RedisUnavailable
    return reply


def _age_s(entry_id: str, now_ms: int) -> float:
    queued_ms = entry_id.partition("-")[0]
    return max(0.0, (now_ms - int(queued_ms)) / 1000) if _NUMBER.fullmatch(queued_ms) else 0.0


def _entry(queue: str, entry_id: str, token: str) -> Entry:
    words = token.split(" ")
    if len(words) != 5:
        return Entry(entry_id, token, 0, None)
    sequence, ticket_id, campaign_id, user_id, request_id = words
    readable = (
        _NUMBER.fullmatch(sequence)
        and is_ticket_id(ticket_id)
        and is_id(campaign_id)
        and queue_of(ticket_id) == queue_of(campaign_id) == queue
        and _CLIENT_ID.fullmatch(user_id)
        and _CLIENT_ID.fullmatch(request_id)
    )
    if not readable:
        return Entry(entry_id, token, 0, None)
    ticket = QueuedTicket(ticket_id, QueueCoupon(campaign_id, user_id, request_id))
    return Entry(entry_id, token, int(sequence), ticket)


def _final_text(final: FinalState) -> str:
    if isinstance(final, IssuedBefore):
        return final.ticket_id
    return f"{final.reason} {(final.time - _EPOCH) // _US}"


def _found(ticket_id: str, state: object) -> Found:
    """What a text of LOOK_UP says; nothing if it cannot be read."""
    words = state.split(" ") if isinstance(state, str) else []
    if len(words) < 4 or not is_id(words[1]) or not _CLIENT_ID.fullmatch(words[2]):
        return None
    kind, campaign_id, user_id, text, *rest = words
    if kind == "waiting" and not rest and _NUMBER.fullmatch(text):
        return Ticket.waiting(ticket_id, campaign_id, user_id, int(text))
    if kind == "final" and not rest and is_ticket_id(text):
        return IssuedBefore(text)
    if kind == "final" and _REASON.fullmatch(text) and len(rest) == 1 and rest[0].isdecimal():
        time = _EPOCH + int(rest[0]) * _US
        return Ticket(
            ticket_id, campaign_id, user_id, TicketState.REFUSED, time, failure_reason=text
        )
    return None
