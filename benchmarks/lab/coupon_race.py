"""The experiment on coupons (R3): its tables, requests, strategies and audit."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Final

import asyncpg

from benchmarks.lab import coupons
from benchmarks.lab.coupon_lane import Decider
from benchmarks.lab.coupon_shares import SHARES, from_shares
from benchmarks.lab.experiment import Answers, Books, Experiment, LaneOf, Strategy
from benchmarks.lab.size import Request, Size
from common.locking.key_line import Waiting

SCHEMA: Final = """
CREATE TABLE campaigns (id bigint PRIMARY KEY, quantity bigint NOT NULL, issued bigint NOT NULL);
CREATE TABLE shares (
    campaign bigint NOT NULL,
    share    bigint NOT NULL,
    quantity bigint NOT NULL,
    issued   bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (campaign, share)
) WITH (fillfactor = 50);
CREATE TABLE coupons (campaign bigint NOT NULL, user_id bigint NOT NULL, number bigint);
CREATE INDEX coupons_by_user ON coupons (campaign, user_id);
"""
USER_ONCE: Final = "CREATE UNIQUE INDEX coupons_user_once ON coupons (campaign, user_id);"
NUMBER_ONCE: Final = (
    "CREATE UNIQUE INDEX coupons_number_once ON coupons (campaign, number);"
    f"ALTER TABLE coupons ADD CHECK (number <= {{quantity}});{USER_ONCE}"
)
WARM_UP: Final = (
    "SELECT quantity FROM campaigns WHERE id = -1 FOR UPDATE",
    "SELECT EXISTS (SELECT FROM coupons WHERE campaign = -1 AND user_id = 0)",
    "UPDATE campaigns SET issued = issued + 1 WHERE id = -1 AND issued < quantity",
    "UPDATE shares SET issued = issued + 1 WHERE campaign = -1 AND share = 0",
    "INSERT INTO coupons SELECT -1, 0, 0 WHERE false",
)


async def fill(connection: asyncpg.Connection, size: Size) -> None:
    await connection.execute("INSERT INTO campaigns VALUES (0, $1, 0)", size.quantity)
    await connection.execute(
        "INSERT INTO shares (campaign, share, quantity)"
        " SELECT 0, n, $1 / $2 + (n < $1 % $2)::int FROM generate_series(0, $2 - 1) n",
        size.quantity,
        SHARES,
    )


def plan(size: Size, seed: int) -> list[Request]:
    """The users in a random order; each one's requests come to several processes together."""
    users = list(range(size.requests))
    random.Random(seed).shuffle(users)
    everyone = [user for user in users for _ in range(size.copies)]
    return [Request(number, user=user) for number, user in enumerate(everyone)]


async def audit(connection: asyncpg.Connection, size: Size, answers: Answers) -> Books:
    found = await connection.fetchrow(
        "SELECT count(*) AS coupons, count(DISTINCT user_id) AS users,"
        " (SELECT sum(issued)::bigint FROM campaigns) + (SELECT sum(issued)::bigint FROM shares)"
        " AS counted FROM coupons"
    )
    coupons, told = found["coupons"], answers.succeeded.total()
    unknown = answers.unknown.total()
    return Books(
        lost=max(0, told - coupons) + max(0, coupons - found["counted"]),
        doubled=coupons
        - found["users"]
        + max(0, found["counted"] - coupons, coupons - told - unknown),
        oversold=max(0, coupons - size.quantity),
    )


STRATEGIES: Final = {
    "none": Strategy(run=coupons.none, right=False),
    "check": Strategy(run=coupons.check_only, right=False),
    "mark": Strategy(run=coupons.mark_first, guards=USER_ONCE),
    "unique": Strategy(run=coupons.unique_user, right=False, guards=USER_ONCE),
    "unique-number": Strategy(run=coupons.unique_number, guards=NUMBER_ONCE),
    "conditional": Strategy(run=coupons.conditional, guards=USER_ONCE),
    "pessimistic": Strategy(run=coupons.pessimistic),
    "simple": Strategy(run=coupons.locked, waiting=Waiting.SIMPLE),
    "spin": Strategy(run=coupons.locked, waiting=Waiting.SPIN),
    "handoff": Strategy(run=coupons.locked, waiting=Waiting.HANDOFF),
    "queue": Strategy(run=coupons.queued, consume=coupons.alone),
    "shares": Strategy(run=from_shares, guards=USER_ONCE),
    "lane": Strategy(
        run=coupons.submitted,
        lane=LaneOf(decide=lambda _: Decider(), redis_key="lab:coupon:{thing}"),
    ),
}
_SIZE: Final = Size(requests=10_000, copies=3, quantity=1_000, callers=64, limit_s=60.0)
EXPERIMENT: Final = Experiment(
    key="coupons",
    title="R3. First-come coupons",
    what="{quantity:,} coupons, {requests:,} users, each of whom asks {copies} times; {callers} "
    "callers in each process.",
    full=_SIZE,
    quick=replace(_SIZE, requests=1_000, quantity=100, limit_s=10.0),
    tiny=replace(_SIZE, requests=60, quantity=20, callers=20, processes=2, sessions=4),
    schema=SCHEMA,
    fill=fill,
    warm_up=WARM_UP,
    plan=plan,
    strategies=STRATEGIES,
    audit=audit,
)
