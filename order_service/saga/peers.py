"""The services that sagas call, and the gateway: which are away, as this replica has seen it.

While one is away, the sagas that wait for nothing else stay in their rows, and the sweep lets one
of them go on as a probe (``Runner``). Its first reply ends that: the others are taken over as they
become due, at the pace of retries.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from common.errors import Refusal
from order_service.clients import GATEWAY, is_away, is_gateway_away, is_overloaded
from order_service.model.saga_input import StepResults
from order_service.saga.plan import PAYMENT

FAILURES_MAX: Final = 5
"""Calls in a row without a reply, after which a service counts as away."""


class Peers:
    """The replies of the participants of sagas to one replica."""

    def __init__(self) -> None:
        self._failures: Counter[str] = Counter()

    def note(self, participant: str, reply: StepResults | Refusal) -> None:
        """Note the reply to a call, or the refusal that came instead."""
        if isinstance(reply, Refusal) and is_away(reply):
            self._failures[participant] += 1
            return
        self._failures.pop(participant, None)
        if isinstance(reply, Refusal) and is_gateway_away(reply):
            self._failures[GATEWAY] += 1
        elif participant == PAYMENT.name and not _is_overloaded(reply):
            self._failures.pop(GATEWAY, None)

    @property
    def away(self) -> list[str]:
        """What is away."""
        return sorted(name for name, count in self._failures.items() if count >= FAILURES_MAX)


def _is_overloaded(reply: StepResults | Refusal) -> bool:
    """Whether the reply says nothing about the gateway: the payment service itself is full."""
    return isinstance(reply, Refusal) and is_overloaded(reply)
