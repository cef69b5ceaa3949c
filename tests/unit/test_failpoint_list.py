"""The list of failpoints is what the code has, and every one of them is a row of the matrix."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

import balance_service.locking
import coupon_service.locking
import order_service.locking
import payment_service.locking
from common.failpoints import Action
from tests.faults.places import ACTIONS, FIRST_RUN, NAMES, PLACES, RECOVERY, cells

ROOT: Final = Path(__file__).parents[2]
PACKAGES: Final = (
    "common",
    "balance_service",
    "coupon_service",
    "order_service",
    "payment_service",
)
OUTSIDE_LANES: Final = {"SetCartItem", "ClearCart", "TakeOverSagas", "RetrySagas"}
"""Commands with a transaction of their own."""


def calls(name: str) -> Iterator[ast.Call]:
    """Every call of a function or method of this name in the code."""
    for package in PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                function = getattr(node, "func", None)
                if isinstance(node, ast.Call) and name in {
                    getattr(function, "attr", ""),
                    getattr(function, "id", ""),
                }:
                    yield node


def pattern(argument: ast.expr) -> str:
    """The names that an argument can be, as a regular expression."""
    if isinstance(argument, ast.JoinedStr):
        return "".join(
            re.escape(str(part.value)) if isinstance(part, ast.Constant) else r"\w+"
            for part in argument.values
        )
    assert isinstance(argument, ast.Constant), ast.dump(argument)
    return re.escape(str(argument.value))


def first_texts(name: str, *, position: int = 0) -> set[str]:
    """The argument in this position of each call of this name, where it is a text."""
    found = (call.args[position] for call in calls(name) if len(call.args) > position)
    return {str(one.value) for one in found if isinstance(one, ast.Constant) and one.value}


def listed(kind: str) -> set[str]:
    """What is listed of one kind, without the kind and ``before`` or ``after``."""
    return {place.name.removeprefix(f"{kind}.") for place in PLACES if place.name.startswith(kind)}


@pytest.fixture(scope="module")
def patterns() -> list[str]:
    hits = [call for call in calls("hit") if len(call.args) and "failpoints" in ast.dump(call.func)]
    return [pattern(call.args[0]) for call in hits]


def test_there_are_at_least_forty_and_none_twice() -> None:
    assert len(NAMES) == 2 * len(PLACES) >= 40


def test_every_listed_name_is_one_of_the_code(patterns: list[str]) -> None:
    assert [name for name in NAMES if not any(re.fullmatch(p, name) for p in patterns)] == []


def test_every_place_of_the_code_is_listed(patterns: list[str]) -> None:
    assert [p for p in patterns if not any(re.fullmatch(p, name) for name in NAMES)] == []


def test_every_command_of_every_lane_is_listed() -> None:
    commands = {
        command.__name__
        for service in (balance_service, coupon_service, order_service, payment_service)
        for command in service.locking.STRATEGIES
    }
    lanes = [name.split(".") for name in listed("lane")]
    assert {command for _, command in lanes} == commands - OUTSIDE_LANES
    assert {lane for lane, _ in lanes} == first_texts("Lane")


def test_every_transaction_outside_lanes_is_listed() -> None:
    assert listed("transaction") == first_texts("in_transaction", position=1)


def test_every_transaction_outside_lanes_has_a_name_and_the_one_repeat() -> None:
    begun = {ast.unparse(call) for call in calls("begin") if "database" in ast.unparse(call)}
    of_lanes = {"self.database.transactions.begin(pool)"}
    assert begun == of_lanes, "common.db.repeat.in_transaction begins the others"


def test_every_call_of_sagas_is_listed() -> None:
    methods = {
        call.args[0].attr
        for call in calls("call")
        if call.args and isinstance(call.args[0], ast.Attribute)
    }
    assert listed("call") == methods


def test_every_call_of_redis_is_listed() -> None:
    assert listed("redis") == first_texts("call") | first_texts("_call")


def test_every_action_occurs_in_both_phases() -> None:
    occurring = {(cell.action, cell.phase) for cell in cells()}
    assert occurring == {(a, phase) for a in Action for phase in (FIRST_RUN, RECOVERY)}
    assert {action for action, _ in ACTIONS.values()} == set(Action)


def test_every_interruption_is_a_failpoint() -> None:
    interruptions = {place.interruption for place in PLACES} | {p.with_error for p in PLACES}
    assert interruptions - {""} <= set(NAMES)
    assert [p.name for p in PLACES if bool(p.interruption) == bool(p.no_recovery)] == []
