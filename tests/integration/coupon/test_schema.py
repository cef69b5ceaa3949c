"""The coupon database: the tables, the guards, and the rights of the runtime role."""

from __future__ import annotations

import asyncpg
import pytest

from coupon_service import tables
from coupon_service.locking import STRATEGIES
from deploy.local.postgres_roles import ServiceUrls
from tests.support.schema import differences, missing_constraints


async def test_migrations_make_the_tables_of_the_code(coupon_database: ServiceUrls) -> None:
    assert await differences(coupon_database.owner, tables.metadata) == []


async def test_every_guard_of_the_strategies_exists(coupon_database: ServiceUrls) -> None:
    guards = {guard for strategy in STRATEGIES.values() for guard in strategy.guards}
    assert guards
    assert await missing_constraints(coupon_database.owner, guards) == set()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE coupons SET user_id = 'bob'",
        "UPDATE coupons SET issue_number = 2",
        "UPDATE campaigns SET quantity = 2",
        "UPDATE redemptions SET discount_minor = 0",
        "DELETE FROM coupons",
        "DELETE FROM redemptions",
        "DELETE FROM campaigns",
        "DROP INDEX redemptions_live_once",
        "ALTER TABLE coupons DROP CONSTRAINT coupons_user_once",
        "CREATE TABLE more (id int)",
    ],
)
async def test_runtime_role_cannot_rewrite_issued_coupons(
    coupon_database: ServiceUrls, statement: str
) -> None:
    connection = await asyncpg.connect(coupon_database.runtime)
    try:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(statement)
    finally:
        await connection.close()
