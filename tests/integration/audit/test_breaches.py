"""Every invariant is broken in otherwise clean books, and the audit must report the breach."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import pytest

import balance_service.tables
import coupon_service.tables
import order_service.tables
import payment_service.tables
from deploy.audit.gateway import PAYMENTS
from deploy.audit.gateway_records import RECORDS
from deploy.audit.invariants import INVARIANTS
from deploy.audit.participants import PARTICIPANTS
from deploy.audit.services import SERVICES
from tests.integration.audit.breaches import (
    balance,
    coupon,
    effects,
    gateway,
    order,
    payment,
    sagas,
    seats,
    shares,
)
from tests.integration.audit.conftest import Planted

BREACHES: Final = {
    "balance": balance.BREACHES,
    "order": order.BREACHES + seats.BREACHES + sagas.BREACHES + effects.BREACHES,
    "coupon": coupon.BREACHES + shares.BREACHES,
    "payment": payment.BREACHES,
    "gateway": gateway.BREACHES,
}
"""By service. Each: its name, the invariants that it breaks, and the check that reports it; a part
of the text that reports it; the change, as SQL."""


@dataclass(frozen=True)
class Breach:
    where: str
    name: str
    invariants: set[str]
    check: str
    reported: str
    sql: str

    @property
    def tables(self) -> set[str]:
        """The tables that it changes."""
        return set(re.findall(r"(?:UPDATE|INSERT INTO|DELETE FROM) (\w+)", self.sql))


def breaches() -> Iterator[Breach]:
    for where, text in BREACHES.items():
        for breach in re.split(r"^(?=.+ \| I\d)", text, flags=re.MULTILINE)[1:]:
            head, reported, sql = breach.split("\n", 2)
            name, invariants, check = head.split(" | ")
            yield Breach(where, name, set(invariants.split()), check, reported.strip(), sql)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    "breach", [*breaches()], ids=lambda breach: f"{breach.where}: {breach.name}"
)
async def test_audit_reports_breach(planted: Planted, breach: Breach) -> None:
    found = await planted.pass_with(breach.where, breach.sql)
    assert breach.invariants <= {invariant for invariant, _ in found.differences}, found.differences
    reports = [
        difference.text
        for (invariant, key), difference in found.differences.items()
        if invariant in breach.invariants and key.startswith(f"{breach.check}: ")
    ]
    assert any(breach.reported in text for text in reports), found.differences


def test_every_invariant_has_a_breach() -> None:
    assert set[str]().union(*(breach.invariants for breach in breaches())) == set(INVARIANTS)


def tables_in(sql: str) -> set[str]:
    return set(re.findall(r"(?:FROM|JOIN) (\w+)", sql))


TABLES: Final = {
    "balance": set(balance_service.tables.metadata.tables),
    "coupon": set(coupon_service.tables.metadata.tables),
    "order": set(order_service.tables.metadata.tables),
    "payment": set(payment_service.tables.metadata.tables),
    "gateway": {"payments", "cancels", "answers"},
}


def reads() -> Iterator[tuple[str, str, str]]:
    """Every check with each table that it reads, as (check, service, table)."""
    statements = [
        (check.name, service, check.sql)
        for service, checks in SERVICES.items()
        for check in checks.checks
    ]
    for one in PARTICIPANTS:
        statements += [(one.noun, "order", one.claims), (one.noun, one.service, one.effects)]
    statements += [("charge", "payment", PAYMENTS), ("charge", "gateway", RECORDS)]
    for check, service, sql in statements:
        for table in tables_in(sql) & TABLES[service]:
            yield check, service, table


def test_every_check_has_a_breach_in_every_table_that_it_reads() -> None:
    planted = {(one.check, one.where, table) for one in breaches() for table in one.tables}
    missing = set(reads()) - planted
    assert not missing
