"""The audit: one pass over all books, and further passes while a difference is unexplained."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import Final

from deploy.audit import gateway, sagas
from deploy.audit.audit_pass import AuditPass
from deploy.audit.checks import run_checks
from deploy.audit.databases import places_of
from deploy.audit.gateway_api import GatewayAddress
from deploy.audit.gateway_look_ups import set_aside
from deploy.audit.participants import PARTICIPANTS
from deploy.audit.report import Report
from deploy.audit.services import SERVICES
from deploy.audit.snapshots import Books, database_errors, take_snapshots
from deploy.audit.sources import Sources
from deploy.audit.touched import Since, Touched, touched_since

PAUSE_S: Final = 1.0
"""Between two passes."""
SETTLE_S: Final = 5.0
OVERDUE_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Limits:
    """The time limits of an audit."""

    settle_s: float = SETTLE_S
    """How long passes are repeated for a difference that nothing explains. A foreign effect has
    two passes."""
    overdue_s: float = OVERDUE_S
    """An order, payment or saga that was due this long ago counts as a difference, and explains
    none. The age is taken against the heartbeat of its service."""


async def audit(
    sources: Sources, limits: Limits | None = None, since: Since | None = None
) -> Report:
    """Repeat passes until every difference is explained or the time is over. Raises CannotAudit.

    ``since``: check what was touched since then only. A time has to be as much earlier than the
    snapshot of an audit of the whole as the longest transaction takes (``deploy.audit.units``).
    """
    limits = limits or Limits()
    first = last = await run_pass(sources, limits, since)
    # From here: a pass over large books takes longer than this time.
    until, passes = time.monotonic() + limits.settle_s, 1
    while last.needs_another and (left_s := until - time.monotonic()) > 0:
        await asyncio.sleep(min(PAUSE_S, left_s))
        last, passes = (await run_pass(sources, limits, since)).keep_repeated(last), passes + 1
    # What the last pass alone has seen is not reported: the next audit has to see it again.
    places = places_of(sources.databases)
    return Report.of(last, passes, times=first.times, since=since, databases=places)


async def run_pass(sources: Sources, limits: Limits, since: Since | None = None) -> AuditPass:
    """Run every check on one snapshot of each book. Raises CannotAudit."""
    look_ups = None
    with TemporaryFile("w+", encoding="utf-8") as file:
        async with take_snapshots(sources) as books:
            found = await check_books(books, limits, since)
            if isinstance(books.gateway, GatewayAddress):
                with database_errors("payment"):
                    look_ups = await set_aside(books, books.gateway, file, limits.overdue_s, since)
        if look_ups is not None:
            await look_ups.compare(found)
    return found


async def check_books(books: Books, limits: Limits, since: Since | None = None) -> AuditPass:
    """Run every check on these snapshots. Raises CannotAudit."""
    found = AuditPass(times=books.times)
    async with touched_since(books, since) as touched:
        await _check(books, found, limits.overdue_s, touched)
    return found


async def _check(books: Books, found: AuditPass, overdue_s: float, touched: Touched | None) -> None:
    for service, checks in SERVICES.items():
        ids = None if touched is None else {unit: touched[service, unit] for unit in checks.units}
        with database_errors(service):
            await run_checks(books[service], found, checks, overdue_s=overdue_s, touched=ids)
    uses = {}
    for participant in PARTICIPANTS:
        with database_errors(f"{participant.service} or order"):
            uses[participant.service] = await sagas.compare(
                books, found, participant, overdue_s=overdue_s, touched=touched
            )
    with database_errors("payment"):
        await gateway.compare(books, found, uses["payment"], overdue_s=overdue_s, touched=touched)
