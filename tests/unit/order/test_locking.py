"""The strategy table says what the code does."""

from __future__ import annotations

from common.locking.strategy import RowStrategy
from order_service.locking import STRATEGIES, lock_key
from order_service.model.order import CancelOrder, CreateOrder, ExpireOrder, Line
from order_service.model.product import RestockProduct


def test_only_the_creation_of_orders_queues_in_redis() -> None:
    create = CreateOrder("ann", (Line("p", 1),), "r1")
    assert lock_key(create) == "order:create:user:ann"
    for command in (
        CancelOrder("o", "ann", "why", "r1"),
        ExpireOrder("o"),
        RestockProduct("p", 1, "r1"),
    ):
        assert lock_key(command) is None
        assert STRATEGIES[type(command).__name__].redis_key is None


def test_every_operation_has_a_last_guard_and_a_reason() -> None:
    assert all(strategy.guards and strategy.why for strategy in STRATEGIES.values())
    assert STRATEGIES["CreateOrder"].rows is RowStrategy.FOR_UPDATE
    assert STRATEGIES["SetCartItem"].rows is RowStrategy.VERSION
