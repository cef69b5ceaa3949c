"""Clients that follow the seats of products. However many they are, a replica asks the database for
changes in one statement per round.

A round is due every quarter of a second, and at once when this replica has changed watched seats.
Every change of a seated product changes some of its seats, to the product's version: so the seats
alone say what is new, and up to which version.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from functools import partial
from itertools import islice, takewhile
from typing import Final, TypeAlias

from common.db.database import Database
from common.db.repeat import read
from common.errors import DatabaseUnavailable, Overloaded
from common.ids import is_id
from common.tasks import DetachedTasks
from order_service.errors import ProductNotFound
from order_service.model.order import Order
from order_service.model.seat import MapSeat
from order_service.store import product as product_store
from order_service.store import seat as store

MESSAGE_SEATS_MAX: Final = 1_000
ROUND_SEATS_MAX: Final = 2_000
"""Seats of one product in one read: more than one change has, which is 1,000 new seats at most."""
CHANGES_MAX: Final = 4_000
"""Changed seats of one product that a replica keeps for those who have not got them yet. A reader
that is further behind gets them from the database: one that never reads costs no more memory."""
ROUND_PAUSE_S: Final = 0.02
"""From one round to the next, at least, when this replica keeps changing watched seats."""
FOLLOWER_PAUSE_S: Final = 0.0005
"""That pause grows by so much for each stream, which gets a message each round: many streams must
leave time for other calls."""
ROUND_PAUSE_MAX_S: Final = 0.25

Change: TypeAlias = tuple[Sequence[MapSeat], int | None]
"""Seats, and the version that they complete; None if more follow."""
Position: TypeAlias = tuple[int, str]
"""Version and label: seats are sent in this order."""


class SeatWatches:
    """The products whose seats clients of this replica follow."""

    def __init__(self, database: Database, *, streams_max: int) -> None:
        """``streams_max``: of this replica; further ones are refused."""
        self._database = database
        self._streams_max = streams_max
        self._streams = 0
        self._watched: dict[str, _WatchedProduct] = {}
        self._round = asyncio.Lock()
        self._early_rounds = DetachedTasks("seat_rounds")
        self._reported = False
        """Whether a change was reported that no round has begun after."""

    async def follow(self, product_id: str, after: int | None) -> AsyncGenerator[Change]:
        """All seats, or those that changed after a version; then each change, without end.

        Raises ProductNotFound, DatabaseUnavailable or Overloaded.
        """
        with self._place():
            version = await self._version_of(product_id)
            start = after if after is not None and after <= version else 0
            watched = self._watched.setdefault(product_id, _WatchedProduct(version))
            follower = _Follower(version)
            watched.followers.add(follower)
            try:
                parts = self._read_map(product_id, _through(start), version)
                while True:
                    async with aclosing(parts):
                        async for seats, known in parts:
                            yield seats, known
                            follower.version = max(follower.version, known or 0)
                    position = _through(follower.version)
                    while (change := await watched.after(position)) is not None:
                        yield change
                        position = _position(change)
                        follower.version = max(follower.version, change[1] or 0)
                    parts = self._read_map(product_id, position, follower.version)
            finally:
                watched.followers.discard(follower)
                if not watched.followers and self._watched.get(product_id) is watched:
                    del self._watched[product_id]

    @contextmanager
    def _place(self) -> Iterator[None]:
        """A place for a stream. Raises Overloaded."""
        if self._streams >= self._streams_max:
            raise Overloaded
        self._streams += 1
        try:
            yield
        finally:
            self._streams -= 1

    def report(self, order: Order) -> None:
        """Report a committed change of an order: a round is due if it has watched seats."""
        if self._watched:
            for item in order.items:
                if item.seats:
                    self.report_product(item.product_id)

    def report_product(self, product_id: str) -> None:
        """Report a committed change of a product's seats."""
        if product_id in self._watched:
            self._reported = True
            if not len(self._early_rounds):
                self._early_rounds.start(self._run_early_rounds())

    async def poll(self) -> None:
        """A round: find what has changed, here or in other replicas."""
        async with self._round:
            self._reported = False
            asked = dict(self._watched)
            known = {product_id: one.known for product_id, one in asked.items()}
            while known:
                changes, earlier = await read(
                    self._database, partial(store.read_changes, known=known, size=ROUND_SEATS_MAX)
                )
                for product_id in earlier:
                    asked[product_id].end()
                    # Whoever follows it from now on begins with the version that it has.
                    if self._watched.get(product_id) is asked[product_id]:
                        del self._watched[product_id]
                known = {
                    product_id: watched.known
                    for product_id, seats in changes.items()
                    if (watched := self._watched.get(product_id)) is not None
                    and watched.update(seats)
                }

    async def close(self) -> None:
        """Wait a moment for a round in progress."""
        await self._early_rounds.close(1.0)

    @property
    def _pause_s(self) -> float:
        return min(max(ROUND_PAUSE_S, FOLLOWER_PAUSE_S * self._streams), ROUND_PAUSE_MAX_S)

    async def _run_early_rounds(self) -> None:
        while self._reported:
            await self.poll()
            await asyncio.sleep(self._pause_s)

    async def _version_of(self, product_id: str) -> int:
        """The product's version, as last committed. Raises ProductNotFound."""
        if not is_id(product_id):
            raise ProductNotFound(product_id=product_id)
        (found,) = await read(
            self._database, partial(product_store.find_products, product_ids=[product_id])
        )
        if isinstance(found, Exception):
            raise found
        if found is None:
            raise ProductNotFound(product_id=product_id)
        return found.version

    async def _read_map(
        self, product_id: str, position: Position, version: int
    ) -> AsyncGenerator[Change]:
        """The seats behind this position, some at a time, until there are no more.

        A seat that changes meanwhile comes again: at the end the map is that of the last version,
        which is at least ``version``.
        """
        while True:
            seats = await read(
                self._database,
                partial(
                    store.read_map, product_id=product_id, after=position, size=MESSAGE_SEATS_MAX
                ),
            )
            if seats:
                version = max(version, seats[-1].version)
                position = (seats[-1].version, seats[-1].label)
            last = len(seats) < MESSAGE_SEATS_MAX
            yield seats, version if last else None
            if last:
                return


class _Follower:
    """How far one client has come."""

    def __init__(self, version: int) -> None:
        self.version = version


class _WatchedProduct:
    """The seats of one product that have changed since the slowest follower's version, or the last
    CHANGES_MAX of them."""

    def __init__(self, version: int) -> None:
        self.known = version
        """The version up to which all changes are known."""
        self._since = version
        """The version after which all changes are kept."""
        self.followers: set[_Follower] = set()
        self._seats: dict[str, MapSeat] = {}
        """By label, in the order in which they are sent."""
        self._changed = asyncio.Event()
        self._ended = False

    def end(self) -> None:
        """End the streams: a failover has lost changes that they may have sent.

        A client that resumes names a version that the product does not have, and gets all seats.
        """
        self._ended = True
        self._changed.set()

    def update(self, seats: Sequence[MapSeat]) -> bool:
        """Add changes, ascending by version; whether there may be more of them.

        The read may have ended within a version: its seats are left for the next one.
        """
        full = len(seats) >= ROUND_SEATS_MAX
        if full:
            seats = [seat for seat in seats if seat.version < seats[-1].version]
        for seat in sorted(seats, key=_place):
            self._seats.pop(seat.label, None)  # to the end
            self._seats[seat.label] = seat
        self.known = max(self.known, seats[-1].version)
        self._forget(min((one.version for one in self.followers), default=self.known))
        if len(self._seats) > CHANGES_MAX:
            excess = len(self._seats) - CHANGES_MAX
            self._forget(next(islice(self._seats.values(), excess - 1, None)).version)
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        return full

    async def after(self, position: Position) -> Change | None:
        """The latest state of seats that changed after this position, when there are any: as many
        as a message has.

        None if some of them are not kept any more. Raises DatabaseUnavailable after ``end``.
        """
        while _through(self.known) <= position and not self._ended:
            await self._changed.wait()
        if self._ended:
            raise DatabaseUnavailable
        if position < _through(self._since):
            return None
        newest_first = takewhile(
            lambda seat: _place(seat) > position, reversed(self._seats.values())
        )
        seats = list(newest_first)[::-1]
        last = len(seats) <= MESSAGE_SEATS_MAX
        return seats[:MESSAGE_SEATS_MAX], self.known if last else None

    def _forget(self, version: int) -> None:
        """Forget the changes up to this version."""
        self._since = max(self._since, version)
        got = list(takewhile(lambda seat: seat.version <= version, self._seats.values()))
        for seat in got:
            del self._seats[seat.label]


def _through(version: int) -> Position:
    """Behind all seats of this version."""
    return version, "\U0010ffff"


def _position(change: Change) -> Position:
    """Behind what has been sent with it."""
    seats, known = change
    return _place(seats[-1]) if known is None else _through(known)


def _place(seat: MapSeat) -> Position:
    return seat.version, seat.label
