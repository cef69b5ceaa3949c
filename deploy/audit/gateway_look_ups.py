"""Payments looked up at the gateway through its API, when the databases' snapshots are closed.

Look-ups take long, and an open snapshot holds back VACUUM: what is compared is set aside in a file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from typing import IO, Final

import sqlalchemy as sa

from deploy.audit.audit_pass import AuditPass
from deploy.audit.errors import CannotAudit
from deploy.audit.gateway import (
    CHANGED_PAYMENTS,
    LOOKED_UP_MAX,
    Comparison,
    Pairs,
    Payment,
    compare_pairs,
)
from deploy.audit.gateway_api import GatewayAddress, GatewayApi, open_gateway
from deploy.audit.merge_join import stream
from deploy.audit.snapshots import Books
from deploy.audit.touched import Since

_SERVICE: Final = "payment"


@dataclass(frozen=True, slots=True)
class LookUps:
    """Payments that are to be compared with the gateway."""

    address: GatewayAddress
    since: datetime
    """They changed at this time or later, or are open."""
    file: IO[str]

    async def compare(self, found: AuditPass) -> None:
        """Look each payment up. If the gateway fails, the rest is left out: the books are checked
        without it.
        """
        known = Comparison()
        since = f"{self.since:%Y-%m-%d %H:%M} UTC"
        try:
            async with open_gateway(self.address) as gateway:
                await compare_pairs(self._asked(gateway), found, known)
        except CannotAudit as error:
            found.gateway_left_out = True
            found.leave_out(f"payments at the gateway, after the first {known.payments:,}: {error}")
        text = f"{known.payments:,} payments since {since} looked up"
        found.add_figure("I7", f"{text} at the gateway, {known.charges:,} charges")
        found.leave_out(
            f"payments at the gateway that changed before {since}, charges"
            " that no payment has, and sums of captures: its API looks up single keys"
        )

    async def _asked(self, gateway: GatewayApi) -> Pairs:
        self.file.seek(0)
        while some := [*islice(self._payments(), LOOKED_UP_MAX)]:
            records = await gateway.records_of([payment.payment_key for payment in some])
            for payment in some:
                yield payment.payment_key, payment, records.get(payment.payment_key)

    def _payments(self) -> Iterator[Payment]:
        return (Payment._make(json.loads(line)) for line in self.file)


async def set_aside(
    books: Books, address: GatewayAddress, file: IO[str], overdue_s: float, since: Since | None
) -> LookUps:
    """Write the payments that changed since then, or within the gateway's days, to the file."""
    times = since or {_SERVICE: books.times[_SERVICE] - timedelta(days=address.days)}
    changed = sa.text(CHANGED_PAYMENTS).bindparams(
        sa.bindparam("asked_since", times[_SERVICE], sa.DateTime(timezone=True))
    )
    async for _, row in stream(books[_SERVICE], changed, 1, overdue_s=overdue_s):
        file.write(json.dumps([*row]) + "\n")
    return LookUps(address, times[_SERVICE], file)
