"""The states and plans that the audit names in SQL are those of the order service."""

from __future__ import annotations

import re

from deploy.audit import claims
from order_service.model.saga import LIVE, StepRecord, StepState
from order_service.saga.plan import PLANS


def quoted(sql: str) -> set[str]:
    return set(re.findall(r"'(\w+)'", sql))


def test_live_states_are_those_of_the_order_service() -> None:
    assert quoted(claims.LIVE) == {state.value for state in LIVE}


def test_begun_states_are_those_that_a_saga_has_to_undo() -> None:
    begun = {state.value for state in StepState if StepRecord("step", state).to_undo}
    assert quoted(claims.BEGUN) == begun


def test_known_plans_are_those_of_the_order_service() -> None:
    known = {int(number) for number in re.findall(r"\d+", claims.KNOWN_PLANS)}
    assert known == {version for _, version in PLANS}
