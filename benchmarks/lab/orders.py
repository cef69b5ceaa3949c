"""Orders of two products (R4): half of them name A before B, half B before A."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import asyncpg
import sqlalchemy as sa

from benchmarks.lab.experiment import Answers, Books, Experiment, LaneOf, Strategy
from benchmarks.lab.size import Request, Size
from benchmarks.lab.tools import Refused, Tools
from common.batching.outcomes import Outcome, RowLocked
from common.db.statements import Connection
from common.locking.key_line import Waiting

PRODUCTS: Final = (0, 1)
SCHEMA: Final = """
CREATE TABLE products (
    id       bigint PRIMARY KEY,
    stocked  bigint NOT NULL,
    reserved bigint NOT NULL DEFAULT 0
);
CREATE TABLE orders (user_id bigint NOT NULL, product bigint NOT NULL);
"""
READ: Final = "SELECT stocked, reserved FROM products WHERE id = $1"
WRITE: Final = "UPDATE products SET reserved = $2 WHERE id = $1"
INSERT: Final = "INSERT INTO orders VALUES ($1, $2)"
WARM_UP: Final = (
    f"{READ.replace('$1', '-1')} FOR UPDATE",
    "UPDATE products SET reserved = 0 WHERE id = -1",
    "INSERT INTO orders SELECT 0, 0 WHERE false",
)


async def fill(connection: asyncpg.Connection, size: Size) -> None:
    for product in PRODUCTS:
        await connection.execute("INSERT INTO products VALUES ($1, $2)", product, size.quantity)


def plan(size: Size, seed: int) -> list[Request]:
    """Of two orders that come together to different processes, each has the other's order."""
    del seed
    return [
        Request(number, thing=number % 2, other=1 - number % 2, user=number)
        for number in range(size.requests)
    ]


async def audit(connection: asyncpg.Connection, size: Size, answers: Answers) -> Books:
    told, unknown = answers.succeeded.total(), answers.unknown.total()
    lost = doubled = oversold = 0
    ordered = Counter(row["product"] for row in await connection.fetch("SELECT * FROM orders"))
    for row in await connection.fetch("SELECT * FROM products"):
        lines = ordered[row["id"]]
        lost += max(0, told - lines) + max(0, lines - row["reserved"])
        doubled += max(0, lines - told - unknown) + max(0, row["reserved"] - lines)
        oversold += max(0, lines - size.quantity)
    return Books(lost=lost, doubled=doubled, oversold=oversold)


async def _reserve(
    connection: asyncpg.Connection, request: Request, product: int, row: asyncpg.Record
) -> None:
    if row["reserved"] >= row["stocked"]:
        raise Refused
    await connection.execute(WRITE, product, row["reserved"] + 1)
    await connection.execute(INSERT, request.user, product)


async def _lock_in_turn(tools: Tools, request: Request, products: Sequence[int]) -> None:
    first, second = products
    async with tools.row_lock(f"{READ} FOR UPDATE", first) as (connection, rows):
        await _reserve(connection, request, first, rows[0])
        await asyncio.sleep(tools.size.work_ms / 1000)
        row = await connection.fetchrow(f"{READ} FOR UPDATE", second)
        await _reserve(connection, request, second, row)


async def unsorted(tools: Tools, request: Request) -> None:
    await _lock_in_turn(tools, request, [request.thing, request.other])


async def in_order(tools: Tools, request: Request) -> None:
    await _lock_in_turn(tools, request, sorted([request.thing, request.other]))


async def several_keys(tools: Tools, request: Request) -> None:
    """Both keys at once, or none; the rows in the order of the request, without row locks."""
    keys = tools.key_lock(request.thing, request.other)
    async with keys as hold, tools.transaction() as connection:
        for number, product in enumerate([request.thing, request.other]):
            if number:
                await asyncio.sleep(tools.size.work_ms / 1000)
            row = await connection.fetchrow(READ, product)
            await _reserve(connection, request, product, row)
        hold.check()


async def submitted(tools: Tools, request: Request) -> None:
    await tools.submit(request)


_LOCK: Final = (
    "SELECT id, stocked, reserved FROM products WHERE id = ANY(CAST(:ids AS bigint[]))"
    " ORDER BY id FOR NO KEY UPDATE"
)
_LOCK_ALL: Final = sa.text(_LOCK)
_LOCK_FREE: Final = sa.text(f"{_LOCK} SKIP LOCKED")
_SAVE: Final = sa.text(
    "UPDATE products SET reserved = new.reserved"
    " FROM unnest(CAST(:ids AS bigint[]), CAST(:reserved AS bigint[])) AS new (id, reserved)"
    " WHERE products.id = new.id"
)
_INSERT: Final = sa.text(
    "INSERT INTO orders SELECT * FROM unnest(CAST(:users AS bigint[]), CAST(:products AS bigint[]))"
)


class Decider:
    """Locks all products of a batch in one order."""

    def __init__(self, tools: Tools) -> None:
        self._work_s = tools.size.work_ms / 1000

    async def __call__(
        self, connection: Connection, commands: Sequence[object], *, wait_for_locks: bool
    ) -> list[Outcome[str]]:
        requests = [command for command in commands if isinstance(command, Request)]
        ids = sorted({id_ for request in requests for id_ in (request.thing, request.other)})
        rows = await connection.execute(_LOCK_ALL if wait_for_locks else _LOCK_FREE, {"ids": ids})
        left = {row.id: row.stocked - row.reserved for row in rows}
        reserved: dict[int, int] = {row.id: row.reserved for row in rows}
        await asyncio.sleep(self._work_s)
        outcomes: list[Outcome[str]] = []
        lines: list[tuple[int, int]] = []
        for request in requests:
            products = [request.thing, request.other]
            blocked = [id_ for id_ in products if id_ not in left]
            if blocked:
                outcomes.append(RowLocked(blocked[0]))
            elif not all(left[id_] for id_ in products):
                outcomes.append("out of stock")
            else:
                for id_ in products:
                    left[id_] -= 1
                    reserved[id_] += 1
                    lines.append((request.user, id_))
                outcomes.append("")
        if lines:
            changed = {"ids": list(reserved), "reserved": list(reserved.values())}
            await connection.execute(_SAVE, changed)
            users, bought = zip(*lines, strict=True)
            await connection.execute(_INSERT, {"users": list(users), "products": list(bought)})
        return outcomes


_SIZE: Final = Size(requests=200, things=2, quantity=1_000, work_ms=2.0)
EXPERIMENT: Final = Experiment(
    key="orders",
    title="R4. Orders: A+B against B+A",
    what="{requests} orders at once, half for A and B, half for B and A; {work_ms:g} ms between "
    "the two rows of an order.",
    full=_SIZE,
    quick=replace(_SIZE, requests=20, limit_s=10.0),
    tiny=replace(_SIZE, requests=10, processes=2, sessions=3, limit_s=6.0),
    schema=SCHEMA,
    fill=fill,
    warm_up=WARM_UP,
    plan=plan,
    strategies={
        "unsorted": Strategy(run=unsorted),
        "sorted": Strategy(run=in_order),
        "several-keys": Strategy(run=several_keys, waiting=Waiting.HANDOFF),
        "lane": Strategy(
            run=submitted, lane=LaneOf(decide=Decider, redis_key="lab:order:user:{user}")
        ),
    },
    audit=audit,
)
