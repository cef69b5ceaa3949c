"""The queues of tickets in Redis, as typed calls. PostgreSQL checks all that is read from here."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from functools import partial
from typing import Final

import structlog
from redis.asyncio import Redis, RedisCluster

from common.locking.redis import (
    RedisCalls,
    RedisUnavailable,
    Script,
    UnexpectedReply,
    eviction_policies,
    open_redis,
)
from common.tasks import DetachedTasks, is_cancelled, result_of
from coupon_service.model.ticket import QueueCoupon, is_ticket_id, partition_of, queue_of
from coupon_service.store import queue_scripts as scripts
from coupon_service.store.queue_entries import (
    Enqueued,
    Finished,
    Found,
    Head,
    age_s,
    entry_of,
    expiry_ms,
    final_text,
    found_of,
)

NO_EVICTION: Final = "noeviction"
TIMEOUT_S: Final = 1.0
"""Of a call: without its reply, a caller has no ticket."""
LOOK_UP_MAX: Final = 500
"""Tickets of one call."""
CLOSE_S: Final = 1.0
_QUEUE: Final = re.compile(r"[0-9a-f]{8}")
_log = structlog.stdlib.get_logger()


class QueueIsFull(Exception):  # noqa: N818 - a state, not a fault
    """As many tickets wait in the queue as it may have."""


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
        reply = await self._call(
            "enqueue_ticket",
            scripts.ENQUEUE,
            keys,
            *(queue, ticket_id, command.campaign_id, command.user_id, command.request_id),
            *(self.waiting_max, expiry_ms(end_time, self.keep)),
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
        reply = await self._call("read_queue", scripts.READ, keys, size)
        if len(reply) < 2:
            raise RedisUnavailable
        waiting, now_ms, *read = reply
        texts = [text for text in read if isinstance(text, str)]
        if type(waiting) is not int or type(now_ms) is not int or len(texts) % 2:
            raise RedisUnavailable
        entries = [entry_of(queue, *pair) for pair in zip(texts[::2], texts[1::2], strict=True)]
        return Head(waiting, age_s(entries[0].entry_id, now_ms) if entries else 0.0, entries)

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
            final = "" if one.final is None else f"{who} {final_text(one.final)}"
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
            found_of(ticket_id, state) for ticket_id, state in zip(ticket_ids, states, strict=True)
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
