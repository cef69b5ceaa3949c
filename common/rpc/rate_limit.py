"""The limits in front of each method: whom a call is counted for, and by which limit.

A method has its calls counted by user, or by address if it is public; a bulk method each of its
items, by the item's user. Where identity is on, only users are limited, and so only methods that
admit them. Where it is off, a call is counted for the user_id that it names, and calls of sagas are
not counted (``common.rpc.pauses.is_marked``).

A write that turns out to repeat an earlier one had no effect: it is given back, and counts as a
read.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from itertools import islice
from typing import Any, Final, Self, TypeAlias

from google.protobuf.descriptor_pb2 import MethodOptions
from google.protobuf.message import Message

from common.errors import Refusal
from common.gcra import Rate
from common.identity.caller import SUBJECT, Caller, Kind, running_caller
from common.locking.redis import open_redis
from common.rate_limits.shared import SharedLimits
from common.rate_limits.two_stage import TwoStageLimit, share_of
from common.rpc.access import USER_ID, callers_of, method_of
from common.rpc.bulk import refuse_items, user_of
from common.rpc.call_ends import Context
from common.rpc.client_address import ClientAddress
from common.rpc.pauses import is_marked
from common.rpc.reserved_ids import ITEMS
from common.settings import ServiceSettings
from tally.options.v1 import access_pb2

Replays: TypeAlias = Callable[[Any, Any, Context], None]
UnaryMethod: TypeAlias = Callable[[Message, Context], Awaitable[Message]]

ITEMS_MAX: Final = 1_000
"""A bulk call of more items is refused soon after."""


class RateLimits:
    """The limits of one server's methods."""

    def __init__(self, settings: ServiceSettings, addresses: ClientAddress) -> None:
        url = settings.redis_url.get_secret_value()
        self._settings = settings
        self._redis = open_redis(url) if url else None
        self._shared = None if self._redis is None else SharedLimits(self._redis)
        self._guarded = settings.auth == "required"
        self._addresses = addresses

    @classmethod
    def wanted(cls, settings: ServiceSettings, addresses: ClientAddress) -> Self | None:
        """The limits that the settings ask for; None if they are off."""
        return cls(settings, addresses) if settings.limits_rates else None

    def of(self, path: str) -> MethodLimit | None:
        """The limit of ``/package.Service/Method``; None if it has none.

        Raises TypeError if the method is not described.
        """
        method = method_of(path)
        name = path.removeprefix("/")
        callers = callers_of(method)
        is_read = method.GetOptions().idempotency_level == MethodOptions.NO_SIDE_EFFECTS
        if access_pb2.CALLER_PUBLIC in callers:
            public = self._settings.rate_limit_public
            return (
                None if public is None else AddressLimit(self._limit(name, public), self._addresses)
            )
        rate = self._settings.rate_of(name, is_read=is_read)
        if rate is None or (self._guarded and access_pb2.CALLER_USER not in callers):
            return None
        users = Users(of_sagas=name in self._settings.saga_methods)
        fields = method.input_type.fields_by_name
        if USER_ID in fields:
            replayed = "replayed" in method.output_type.fields_by_name
            return UserLimit(self._limit(name, rate), users, self._replays() if replayed else None)
        if ITEMS in fields and not self._guarded:
            return ItemLimit(self._limit(name, rate), users, self._replays())
        return None

    async def close(self) -> None:
        """Call it when no call is left."""
        if self._redis is not None and self._shared is not None:
            await self._shared.close()
            await self._redis.aclose()

    def _limit(self, name: str, rate: Rate) -> TwoStageLimit:
        replicas = self._settings.rate_limit_replicas
        return TwoStageLimit(f"{name}:", rate, replicas=replicas, shared=self._shared)

    def _replays(self) -> ReplayShare | None:
        rate = self._settings.rate_limit_reads
        return None if rate is None else ReplayShare(rate, self._settings.rate_limit_replicas)


class Users:
    """Tells for which user a call is counted."""

    def __init__(self, *, of_sagas: bool) -> None:
        """``of_sagas``: whether sagas call the method."""
        self._of_sagas = of_sagas

    def of(self, request: Any, caller: Caller | None, context: Context) -> str | None:
        """The user; None if the call is not counted."""
        if caller is not None:
            return caller.subject if caller.kind is Kind.USER else None
        # Reading metadata costs more than all the rest; a saga's request_id has a colon.
        if self._of_sagas and ":" in request.request_id and self.exempts(context):
            return None
        return self.named(request)

    def exempts(self, context: Context) -> bool:
        """Whether it is a saga's call, as far as is known without identity."""
        return self._of_sagas and is_marked(context)

    @staticmethod
    def named(request: Any) -> str | None:
        """The user that a request names, if it is one."""
        user_id: str = request.user_id
        return user_id if SUBJECT.fullmatch(user_id) else None


class ReplayShare:
    """How many replays of a user may be given back: this replica's share of the limit of reads."""

    def __init__(self, rate: Rate, replicas: int) -> None:
        self._share = share_of(rate, replicas)

    def take(self, user: str) -> bool:
        """Count one more replay; False if there are too many of them."""
        return self._share.take(user, time.monotonic_ns()) <= 0


def counting_replays(run: UnaryMethod, limit: MethodLimit | None) -> UnaryMethod:
    """The method, whose replays are told to its limit if that wants to know them."""
    replays = None if limit is None else limit.replays
    if replays is None:
        return run

    async def run_and_count(request: Message, context: Context) -> Message:
        response = await run(request, context)
        replays(request, response, context)
        return response

    return run_and_count


class MethodLimit(ABC):
    """The limit of one method."""

    replays: Replays | None = None
    """Called with request, response and context of a call that succeeded."""

    @abstractmethod
    def take(self, request: Any, caller: Caller | None, context: Context) -> Awaitable[None] | None:
        """Count a call: None if it is admitted, or what to wait for. Both raise RateLimited."""


class AddressLimit(MethodLimit):
    """Counts calls by the client's address."""

    def __init__(self, limit: TwoStageLimit, addresses: ClientAddress) -> None:
        self._limit = limit
        self._addresses = addresses

    def take(
        self,
        request: Any,  # noqa: ARG002 - counted alike, whatever is asked and by whom
        caller: Caller | None,  # noqa: ARG002
        context: Context,
    ) -> Awaitable[None] | None:
        address = self._addresses.address_of(context)
        return None if address is None else self._limit.take(address)


class UserLimit(MethodLimit):
    """Counts calls by their user."""

    def __init__(self, limit: TwoStageLimit, users: Users, share: ReplayShare | None) -> None:
        """``share``: None if the method has no replays, or they are not limited."""
        self._limit = limit
        self._users = users
        self._share = share
        self.replays = None if share is None else self._replayed

    def take(self, request: Any, caller: Caller | None, context: Context) -> Awaitable[None] | None:
        user = self._users.of(request, caller, context)
        return None if user is None else self._limit.take(user)

    def _replayed(self, request: Any, response: Any, context: Context) -> None:
        if not response.replayed:
            return
        user = self._users.of(request, running_caller(), context)
        if user is not None and self._share is not None and self._share.take(user):
            self._limit.give_back(user)


class ItemLimit(MethodLimit):
    """Counts each item of a bulk call by its user, where identity is off.

    Items above the limit get RateLimited as their result; the others are decided.
    """

    def __init__(self, limit: TwoStageLimit, users: Users, share: ReplayShare | None) -> None:
        self._limit = limit
        self._users = users
        self._share = share
        self.replays = None if share is None else self._replayed

    def take(
        self,
        request: Any,
        caller: Caller | None,  # noqa: ARG002 - identity is off
        context: Context,
    ) -> Awaitable[None] | None:
        if self._users.exempts(context):
            return None
        refused: dict[int, Refusal] = {}
        asked: dict[int, Awaitable[None]] = {}
        for position, item in enumerate(islice(request.items, ITEMS_MAX)):
            user = user_of(item)
            if user is None:
                continue
            try:
                if (waits := self._limit.take(user)) is not None:
                    asked[position] = waits
            except Refusal as refusal:
                refused[position] = refusal
        if asked:
            return self._ask(asked, refused)
        refuse_items(refused)
        return None

    async def _ask(self, asked: dict[int, Awaitable[None]], refused: dict[int, Refusal]) -> None:
        answers = await asyncio.gather(*asked.values(), return_exceptions=True)
        for position, answer in zip(asked, answers, strict=True):
            if isinstance(answer, Refusal):
                refused[position] = answer
            elif answer is not None:
                raise answer
        refuse_items(refused)

    def _replayed(self, request: Any, response: Any, context: Context) -> None:
        if self._users.exempts(context):
            return
        for item, result in zip(request.items, response.results, strict=True):
            user = user_of(item) if _is_replayed(result) else None
            if user is not None and self._share is not None and self._share.take(user):
                self._limit.give_back(user)


def _is_replayed(result: Any) -> bool:
    return any(
        value if field.name == "replayed" else getattr(value, "replayed", False)
        for field, value in result.ListFields()
    )
