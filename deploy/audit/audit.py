"""The audit: one pass over all books, and further passes while a difference is unexplained."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Final

from deploy.audit import balance, coupon, gateway, order, payment, sagas
from deploy.audit.audit_pass import AuditPass
from deploy.audit.checks import ServiceChecks, run_checks
from deploy.audit.participants import PARTICIPANTS
from deploy.audit.report import Report
from deploy.audit.snapshots import Books, database_errors, take_snapshots
from deploy.audit.sources import Sources

PAUSE_S: Final = 1.0
"""Between two passes."""
SETTLE_S: Final = 5.0
OVERDUE_S: Final = 60.0

SERVICES: Final[dict[str, ServiceChecks]] = {
    "balance": balance.SERVICE,
    "coupon": coupon.SERVICE,
    "order": order.SERVICE,
    "payment": payment.SERVICE,
}


@dataclass(frozen=True, slots=True)
class Limits:
    """The time limits of an audit."""

    settle_s: float = SETTLE_S
    """How long passes are repeated for a difference that nothing explains."""
    overdue_s: float = OVERDUE_S
    """An order, payment or saga that was due this long ago counts as a difference, and explains
    none. The age is taken against the heartbeat of its service."""


async def audit(sources: Sources, limits: Limits | None = None) -> Report:
    """Repeat passes until every difference is explained or the time is over. Raises CannotAudit."""
    limits = limits or Limits()
    until = time.monotonic() + limits.settle_s
    last, passes = await run_pass(sources, limits), 1
    while last.unsettled and (left_s := until - time.monotonic()) > 0:
        await asyncio.sleep(min(PAUSE_S, left_s))
        last, passes = (await run_pass(sources, limits)).keep_repeated(last), passes + 1
    return Report.of(last, passes)


async def run_pass(sources: Sources, limits: Limits) -> AuditPass:
    """Run every check on one snapshot of each book. Raises CannotAudit."""
    async with take_snapshots(sources) as books:
        return await check_books(books, limits)


async def check_books(books: Books, limits: Limits) -> AuditPass:
    """Run every check on these snapshots. Raises CannotAudit."""
    found = AuditPass()
    for service, checks in SERVICES.items():
        with database_errors(service):
            await run_checks(books[service], found, checks, overdue_s=limits.overdue_s)
    uses = {}
    for participant in PARTICIPANTS:
        with database_errors(f"{participant.service} or order"):
            uses[participant.service] = await sagas.compare(
                books, found, participant, overdue_s=limits.overdue_s
            )
    with database_errors("payment"):
        await gateway.compare(books, found, uses["payment"], overdue_s=limits.overdue_s)
    return found
