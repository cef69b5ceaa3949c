"""The calls of sagas' steps, and what they show of the services that are called."""

from __future__ import annotations

from typing import Final

import structlog
from prometheus_client import Counter

from common import deadlines
from common.errors import Internal, Refusal
from common.metrics import REGISTRY, from_zero
from order_service.clients import Services, StepCall, StepEffect, effect_of
from order_service.model.saga import StepRecord
from order_service.model.saga_input import StepResults
from order_service.saga.peers import Peers
from order_service.saga.plan import PLANS, Call, GiveBack, Step

_log = structlog.stdlib.get_logger()

_steps = Counter(
    "tally_saga_steps",
    "Calls made by sagas, by step, direction and outcome.",
    ("step", "direction", "outcome"),
    registry=REGISTRY,
)
_DONE: Final = "done"


def _count_from_zero() -> None:
    outcomes = (_DONE, *(effect.value for effect in StepEffect))
    for step in {step for plan in PLANS.values() for step in plan.steps}:
        # The steps of a cancellation are done, and have no undo of their own.
        directions = ("do", "undo") if isinstance(step, Step) else ("do",)
        from_zero(_steps, [step.name], directions, outcomes)


_count_from_zero()


def direction_of(record: StepRecord) -> str:
    """Of a call that gives back. The steps of a cancellation are its own, not compensations."""
    return "do" if record.undoes else "undo"


class StepCalls:
    """Calls the services; every failure of a call is returned."""

    def __init__(self, services: Services, peers: Peers) -> None:
        self._services = services
        self._peers = peers

    async def do(
        self, step: Step, record: StepRecord, call: StepCall, *, limit_s: float
    ) -> StepResults | Refusal:
        """Carry a step out. It takes ``limit_s`` at most, its quick retries included."""
        return await self._call(record, "do", step.do, call, limit_s)

    async def give_back(self, one: GiveBack, *, limit_s: float) -> StepResults | Refusal:
        """Give back what a step took."""
        return await self._call(one.record, direction_of(one.record), one.do, one.call, limit_s)

    async def _call(
        self, record: StepRecord, direction: str, do: Call, call: StepCall, limit_s: float
    ) -> StepResults | Refusal:
        reply: StepResults | Refusal
        try:
            with deadlines.within(limit_s):
                reply = await do(self._services, call)
        except Refusal as refusal:
            reply = refusal
        except Exception:  # noqa: BLE001 - a defect of Tally, perhaps after the call was made
            _log.exception("saga_call_failed", request_id=call.request_id)
            reply = Internal()
        outcome = _DONE if isinstance(reply, StepResults) else effect_of(reply).value
        _steps.labels(record.name, direction, outcome).inc()
        self._peers.note(record.participant, reply)
        return reply
