"""Checks inside one snapshot: a statement gives a row for each thing that differs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from deploy.audit.look import KEPT_MAX, Look

ANSWERS_KEPT: Final = "interval '29 days'"
"""An effect younger than this still has its answer: they are kept for 30 days at least."""


@dataclass(frozen=True, slots=True)
class Check:
    """What must not be. ``sql`` selects ``key`` and ``told`` of every row that differs."""

    invariants: str
    """One or several, with blanks between."""
    name: str
    sql: str
    certain: bool = True
    """No later look can show anything else."""


@dataclass(frozen=True, slots=True)
class Figure:
    """What was counted or summed: one row, or one for each currency, put into the template."""

    invariant: str
    template: str
    sql: str


async def run(
    connection: AsyncConnection,
    look: Look,
    checks: Iterable[Check],
    figures: Iterable[Figure],
    parameters: dict[str, Any] | None = None,
) -> None:
    """Carry the checks out and take in the figures."""
    for figure in figures:
        for row in (await connection.execute(sa.text(figure.sql), parameters)).mappings():
            look.figure(figure.invariant, figure.template.format_map(_whole(row)))
    for check in checks:
        await _run(connection, look, check, parameters)


def _whole(row: Mapping[Any, Any]) -> dict[str, Any]:
    # A sum of bigints is a Decimal, which may be formatted as 1E+5.
    return {key: int(value) if isinstance(value, Decimal) else value for key, value in row.items()}


async def _run(
    connection: AsyncConnection, look: Look, check: Check, parameters: dict[str, Any] | None
) -> None:
    # Counted in the database, so that a book in ruins is told of in the memory of a clean one.
    statement = sa.text(
        f"SELECT key, told, count(*) OVER () AS found FROM ({check.sql}) AS differing"  # noqa: S608 - a constant of this package
        f" ORDER BY key LIMIT {KEPT_MAX}"
    )
    rows = (await connection.execute(statement, parameters)).all()
    invariants = check.invariants.split()
    for row in rows:
        look.differ(invariants, check.name, row.key, row.told, certain=check.certain)
    if rows:
        for invariant in invariants:
            look.more[invariant] += rows[0].found - len(rows)
