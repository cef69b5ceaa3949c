"""How much of a batch the commands of the order service are."""

from __future__ import annotations

import pytest

from order_service.locking import STRATEGIES
from order_service.model.cart import ClearCart
from order_service.model.order import CreateOrder, Line
from order_service.model.seat import AddSeats

LABELS = tuple(map(str, range(100)))


@pytest.mark.parametrize(
    ("command", "weight"),
    [
        (AddSeats("p", LABELS, "r"), 100),
        (CreateOrder("ann", (Line("p", 60, LABELS[:60]), Line("q", 40, LABELS[60:])), "r"), 100),
        (CreateOrder("ann", (Line("p", 1_000),), "r"), 1),
        (ClearCart("ann", None), 1),
    ],
    ids=["labels", "seats", "no-seats", "cart"],
)
def test_a_command_weighs_what_it_writes_of_seats(command: object, weight: int) -> None:
    assert STRATEGIES[type(command)].weight_of(command) == weight
