"""Checks within one snapshot: a statement that returns the rows that differ."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from deploy.audit.audit_pass import KEPT_MAX, AuditPass

ANSWERS_KEPT: Final = "interval '29 days'"
"""An effect younger than this has a stored answer: answers are kept for at least 30 days."""


@dataclass(frozen=True, slots=True)
class Check:
    """What must not be. ``sql`` selects ``key`` and ``difference``, NULL where a row is right."""

    invariants: str
    """One or several, separated by blanks."""
    name: str
    sql: str
    certain: bool = True
    """False: another pass may not find it again."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A count or a sum: one row, or one for each currency, formatted by the template."""

    invariant: str
    template: str
    sql: str


def answers_figure(template: str) -> Figure:
    """The number of stored answers."""
    return Figure("I8", template, "SELECT count(*) AS answers FROM answers")


async def run_checks(
    connection: AsyncConnection,
    found: AuditPass,
    checks: Iterable[Check],
    figures: Iterable[Figure],
    *,
    overdue_s: float,
) -> None:
    """Add the differences of all checks and all figures to ``found``."""
    for figure in figures:
        for row in (await connection.execute(sa.text(figure.sql))).mappings():
            # A sum of bigints is a Decimal, which may be formatted as 1E+5.
            values = {k: int(v) if isinstance(v, Decimal) else v for k, v in row.items()}
            found.add_figure(figure.invariant, figure.template.format_map(values))
    for check in checks:
        await _run(connection, found, check, overdue_s)


async def _run(
    connection: AsyncConnection, found: AuditPass, check: Check, overdue_s: float
) -> None:
    # Counted in the database: the memory needed does not grow with the number of differences.
    statement = sa.text(
        f"SELECT key, difference, count(*) OVER () AS total FROM ({check.sql}) AS checked"  # noqa: S608 - a constant of this package
        f" WHERE difference IS NOT NULL ORDER BY key LIMIT {KEPT_MAX}"
    )
    rows = (await connection.execute(statement, {"overdue_s": overdue_s})).all()
    invariants = check.invariants.split()
    for row in rows:
        found.add_difference(invariants, check.name, row.key, row.difference, certain=check.certain)
    for invariant in invariants if rows else ():
        found.more[invariant] += rows[0].total - len(rows)
