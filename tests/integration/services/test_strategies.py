"""What each service's locking.py says of an operation is what the operation does."""

from __future__ import annotations

import asyncio
from typing import Any, get_args

import pytest

from common.locking.strategy import RowStrategy, Strategies
from tests.integration.services.operations import (
    LANES,
    OUTSIDE_LANES,
    REDIS_KEYS,
    SERVICES,
    Operation,
)
from tests.support.stack import Stack, no_faults, stack, stack_databases
from tests.support.statements import recorded_transactions, row_strategies

__all__ = ["no_faults", "stack", "stack_databases"]

each_service = pytest.mark.parametrize("service", SERVICES)
each_operation = pytest.mark.parametrize(
    ("strategies", "operation"),
    [
        pytest.param(strategies, operation, id=operation.command.__name__)
        for strategies, operations in SERVICES.values()
        for operation in operations
    ],
)


@each_service
def test_exactly_the_commands_of_lanes_have_strategies(service: str) -> None:
    strategies, operations = SERVICES[service]
    submitted = {command for lane in LANES[service] for command in get_args(lane) or (lane,)}
    assert set(strategies) == submitted | OUTSIDE_LANES.get(service, set())
    assert sorted(strategies, key=str) == sorted((each.command for each in operations), key=str)
    assert all(strategy.why for strategy in strategies.values())


@each_service
def test_redis_keys_are_made_of_the_commands_attributes(service: str) -> None:
    strategies, _ = SERVICES[service]
    examples = REDIS_KEYS[service]
    assert {type(command) for command in examples} == {
        command for command, strategy in strategies.items() if strategy.redis_key or strategy.mark
    }
    for command, keys in examples.items():
        strategy = strategies[type(command)]
        assert keys == (*strategy.keys_of(command), *filter(None, [strategy.mark_of(command)]))


def test_only_strategies_without_row_locks_have_more_than_one_round() -> None:
    """Locked rows have no version conflicts: another number would be decoration."""
    for strategies, _ in SERVICES.values():
        for strategy in strategies.values():
            rows_are_locked = strategy.rows in {RowStrategy.FOR_UPDATE, RowStrategy.INSERT}
            assert strategy.rounds_max == 1 or not rows_are_locked


@pytest.fixture(scope="module")
def redis_url() -> str:
    """Without Redis: the statements are the same."""
    return ""


@pytest.fixture(scope="module")
def stack_options() -> dict[str, Any]:
    """With leases so short that they are renewed while a test waits."""
    return {"saga_attention_s": 0.001, "saga_lease_s": 3.0, "expiry_interval_s": 0.1}


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    "operation",
    [
        pytest.param(operation, id=f"{service}-{operation.command.__name__}")
        for service, (_, operations) in SERVICES.items()
        for operation in operations
        if operation is operations[0] or operation.command in OUTSIDE_LANES.get(service, set())
    ],
)
async def test_an_operation_succeeds_when_every_idle_session_has_ended(
    stack: Stack, operation: Operation
) -> None:
    """As after ``idle_session_timeout``: an operation of a lane in each service, and all others."""
    calls = await operation.prepare(stack)
    idle = "datname = current_database() AND state = 'idle' AND pid <> pg_backend_pid()"
    end = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {idle}"
    ended = await asyncio.gather(*(stack.databases.sql(service, end) for service in SERVICES))
    assert any(ended), "sessions that the preparation has used"
    await calls()


@pytest.mark.asyncio(loop_scope="module")
@each_operation
async def test_an_operations_statements_follow_its_row_strategy(
    stack: Stack, strategies: Strategies, operation: Operation
) -> None:
    calls = await operation.prepare(stack)
    with recorded_transactions() as transactions:
        await calls()
    followed = [
        found
        for transaction in transactions
        if any(operation.sql in statement for statement in transaction)
        and (found := row_strategies(transaction, operation.table, operation.compared))
    ]
    assert followed, transactions
    for found in followed:
        assert strategies[operation.command].rows in found, transactions
