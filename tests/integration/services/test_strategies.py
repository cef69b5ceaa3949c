"""What each service's locking.py says of an operation is what the operation does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, get_args

import pytest

import balance_service.model
from balance_service.locking import STRATEGIES as BALANCE
from balance_service.model import ChargeBalance, DeductBalance, RefundDeduction
from balance_service.settings import BalanceSettings
from balance_service.wiring import build as build_balance
from common.locking.strategy import Strategies
from common.money import Money
from deploy.local.postgres_roles import ServiceUrls
from tally.balance.v1.balance_pb2_grpc import BalanceServiceStub
from tests.support.balances import charge, deduct, refund
from tests.support.replicas import channel, replicas
from tests.support.statements import recorded_transactions, row_strategies

WON = Money("KRW", 100)


@dataclass(frozen=True)
class Operation:
    """One command, its Redis key, and a call that carries it out."""

    command: object
    redis_key: str | None
    call: Callable[[Any], Awaitable[Any]]
    table: str
    compared: str = "version"
    """The column of the table that a conditional write compares."""

    def __str__(self) -> str:
        return type(self.command).__name__


BALANCE_OPERATIONS = [
    Operation(
        ChargeBalance("ann", WON, "c"),
        "balance:user:ann",
        lambda balance: balance.ChargeBalance(charge("ann", 100, "c")),
        "accounts",
    ),
    Operation(
        DeductBalance("ann", WON, "d", None),
        "balance:user:ann",
        lambda balance: balance.DeductBalance(deduct("ann", 1, "d")),
        "accounts",
    ),
    Operation(
        RefundDeduction("ann", "first", "r"),
        "balance:user:ann",
        lambda balance: balance.RefundDeduction(refund("ann", "first", "r")),
        "accounts",
    ),
]

SERVICES: dict[str, tuple[Strategies, object, list[Operation]]] = {
    "balance": (BALANCE, balance_service.model.Command, BALANCE_OPERATIONS),
}


@pytest.mark.parametrize("service", SERVICES)
def test_every_command_of_a_lane_has_a_strategy_and_nothing_else_has(service: str) -> None:
    strategies, commands, operations = SERVICES[service]
    assert set(strategies) == set(get_args(commands))
    assert set(strategies) == {type(operation.command) for operation in operations}
    assert all(strategy.why for strategy in strategies.values())


@pytest.mark.parametrize(
    ("strategies", "operation"),
    [
        pytest.param(strategies, operation, id=str(operation))
        for strategies, _, operations in SERVICES.values()
        for operation in operations
    ],
)
def test_a_commands_redis_key_is_made_of_its_attributes(
    strategies: Strategies, operation: Operation
) -> None:
    strategy = strategies[type(operation.command)]
    assert strategy.key_of(operation.command) == operation.redis_key


@pytest.fixture
async def balance(balance_database: ServiceUrls) -> AsyncIterator[Any]:
    """A client, and an account with a deduction."""
    async with (
        replicas(
            1, BalanceSettings, build_balance, database_url=balance_database.runtime, redis_url=""
        ) as addresses,
        channel(*addresses) as opened,
    ):
        client: Any = BalanceServiceStub(opened)
        await client.ChargeBalance(charge("ann", 1_000, "first"))
        await client.DeductBalance(deduct("ann", 100, "first"))
        yield client


@pytest.mark.parametrize("operation", BALANCE_OPERATIONS, ids=str)
async def test_a_balance_operation_has_its_row_strategy(balance: Any, operation: Operation) -> None:
    with recorded_transactions() as transactions:
        await operation.call(balance)
    assert row_strategies(transactions, operation.table, operation.compared) == [
        BALANCE[type(operation.command)].rows
    ]
