"""Bulk methods: a request with many ``items``, each decided by itself, and a result for each.

Such a method may have larger messages than others, and takes a slot of the concurrency limit for
each item (``common.rpc.concurrency``). An item's error is a google.rpc.Status in its result, the
same that the single call would have ended with.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence, Sized
from contextvars import ContextVar
from typing import Any, Final, Protocol, TypeVar

from google.protobuf.message import Message
from google.rpc import status_pb2  # type: ignore[import-untyped]

from common import metrics
from common.errors import Internal, Refusal
from common.identity.caller import SUBJECT
from common.rpc.access import USER_ID
from common.rpc.status import GRPC_CODES, to_status
from common.rpc.unexpected import internal

F = TypeVar("F", bound=Callable[..., Any])
Item = TypeVar("Item")
Command = TypeVar("Command")
Value = TypeVar("Value")

TURN_ITEMS: Final = 128
"""Items that are converted in one turn of the event loop, a millisecond or two."""
_MARK: Final = "_tally_bulk"
_refused: ContextVar[Mapping[int, Refusal]] = ContextVar("tally_refused_items")


class BulkRequest(Protocol):
    """The request of a bulk method."""

    @property
    def items(self) -> Sized: ...


def bulk(method: F) -> F:
    """Mark a servicer's method as a bulk method."""
    setattr(method, _MARK, True)
    return method


def is_bulk(method: object) -> bool:
    return getattr(method, _MARK, False)


def user_of(item: Message) -> str | None:
    """The user that an item names, itself or in the request of another method that it is.

    None if it names none in the form of a user_id: it is validated by itself, later.
    """
    for named in (item, *(value for _, value in item.ListFields())):
        user_id: str = getattr(named, USER_ID, "")
        if SUBJECT.fullmatch(user_id):
            return user_id
    return None


def refuse_items(refused: Mapping[int, Refusal]) -> None:
    """Give items of the running call these results, by position: they are not decided."""
    _refused.set(refused)


async def decide_items(
    method: str,
    items: Sequence[Item],
    command_of: Callable[[Item], Command],
    write: Callable[[Sequence[Command]], Awaitable[Sequence[Value | Exception]]],
    add_result: Callable[[Value | status_pb2.Status], None],
) -> None:
    """Call ``add_result`` once for each item, in their order, with its value or status.

    ``command_of`` raises the Refusal of an item that is not valid. ``write`` gets the commands of
    the others and returns an outcome for each. ``method``: the full name, for metrics and the log.
    """
    commands, refused = await _commands(items, command_of)
    outcomes: list[Value | Exception] = list(await write(commands)) if commands else []
    assert len(outcomes) == len(commands), "one outcome per command"
    for position, refusal in refused.items():  # in ascending order
        outcomes.insert(position, refusal)
    statuses: dict[Exception, status_pb2.Status] = {}  # many items may have one exception
    ends: Counter[tuple[str, str]] = Counter()
    for turn in _turns(len(outcomes)):
        for position in turn:
            outcome = outcomes[position]
            if not isinstance(outcome, Exception):
                ends["OK", ""] += 1
                add_result(outcome)
                continue
            if (status := statuses.get(outcome)) is None:
                refusal = outcome if isinstance(outcome, Refusal) else internal(method, outcome)
                status = statuses[outcome] = to_status(refusal)
            reason = outcome.reason if isinstance(outcome, Refusal) else Internal.reason
            ends[GRPC_CODES[status.code].name, reason] += 1
            add_result(status)
        await asyncio.sleep(0)
    for (code, reason), count in ends.items():
        metrics.BULK_ITEMS.labels(method, code, reason).inc(count)


async def _commands(
    items: Sequence[Item], command_of: Callable[[Item], Command]
) -> tuple[list[Command], dict[int, Refusal]]:
    """The commands of the items, and the refusals of those that have none, by position."""
    commands: list[Command] = []
    refused: dict[int, Refusal] = {}
    above_limit = _refused.get({})
    for turn in _turns(len(items)):
        for position in turn:
            if (refusal := above_limit.get(position)) is not None:
                refused[position] = refusal
                continue
            try:
                commands.append(command_of(items[position]))
            except Refusal as error:
                refused[position] = error
        await asyncio.sleep(0)
    return commands, refused


def _turns(count: int) -> Iterable[range]:
    """The positions of ``count`` items, TURN_ITEMS at a time: other calls run in between."""
    return (range(first, min(first + TURN_ITEMS, count)) for first in range(0, count, TURN_ITEMS))
