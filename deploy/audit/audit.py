"""The audit: one look, and further ones while something is unexplained."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from deploy.audit import coupons, gateway, ledger, orders, payments, sagas
from deploy.audit.checks import Check, Figure, run
from deploy.audit.look import Look, Report
from deploy.audit.snapshots import Books, snapshots, told
from deploy.audit.sources import Sources

PAUSE_S: Final = 1.0
"""Between two looks."""
SETTLE_S: Final = 5.0
OVERDUE_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Limits:
    """How patient the audit is."""

    settle_s: float = SETTLE_S
    """As long it looks again at what nothing explains: each service is seen at its own moment."""
    overdue_s: float = OVERDUE_S
    """What is not over after this time, counted from the start of its database at the earliest,
    is not on its way any more."""


async def audit(sources: Sources, limits: Limits | None = None) -> Report:
    """Look until everything is explained or the time is over. Raises CannotLook."""
    limits = limits or Limits()
    until = time.monotonic() + limits.settle_s
    last, looks = await look_once(sources, limits), 1
    while last.unsettled and (left_s := until - time.monotonic()) > 0:
        await asyncio.sleep(min(PAUSE_S, left_s))
        last, looks = (await look_once(sources, limits)).since(last), looks + 1
    return Report.of(last, looks)


_LOCAL: Final[dict[str, tuple[Sequence[Check], Sequence[Figure]]]] = {
    "balance": (ledger.CHECKS, ledger.FIGURES),
    "coupon": (coupons.CHECKS, coupons.FIGURES),
    "order": (orders.CHECKS, orders.FIGURES),
    "payment": (payments.CHECKS, payments.FIGURES),
}


async def look_once(sources: Sources, limits: Limits) -> Look:
    """Every check against one snapshot of each book. Raises CannotLook."""
    look = Look()
    async with snapshots(sources) as books:
        for service, (checks, figures) in _LOCAL.items():
            with told(service):
                parameters = {"overdue_s": limits.overdue_s}
                await run(books[service], look, checks, figures, parameters)
        await _across(books, look)
    return look


async def _across(books: Books, look: Look) -> None:
    for part in sagas.PARTS:
        with told(f"{part.service} or order"):
            await sagas.compare(books, look, part)
    with told("payment"):
        await gateway.compare(books, look)
