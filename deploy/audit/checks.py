"""Checks within one snapshot: a statement that returns the rows that differ.

A statement may use the parameter ``:overdue_s``, as ``moving`` does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from deploy.audit.audit_pass import KEPT_MAX, AuditPass, Note
from deploy.audit.units import USER, WHOLE, Units, batches

ANSWERS_KEPT: Final = "interval '29 days'"
"""An effect younger than this has a stored answer: answers are kept for at least 30 days."""


def moving(due_time: str) -> str:
    """SQL: whether a replica has the work at ``due_time``, or will have, or had it just now.

    The age is the time in which the service has run since then, as its heartbeat ``h`` records it,
    and not the clock's: a stack that is stopped has the verdict that it had while it ran, and
    nothing is overdue for the time in which nothing ran.
    """
    ran = f"h.runs * tstzmultirange(tstzrange({due_time}, NULL))"
    return (
        f"(SELECT coalesce(extract(epoch FROM sum(upper(run) - lower(run))), 0)"  # noqa: S608 - constants
        f" FROM unnest({ran}) AS run) <= CAST(:overdue_s AS double precision)"
    )


@dataclass(frozen=True, slots=True)
class Check:
    """What must not be. ``sql`` selects ``key`` and ``difference``, NULL where a row is right."""

    invariants: str
    """One or several, separated by blanks."""
    name: str
    sql: str
    certain: bool = True
    """False: another pass may not find it again."""
    unit: str = USER
    """What it reads together (``deploy.audit.units``)."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A count or a sum: one row, or one for each currency, formatted by the template."""

    invariant: str
    template: str
    sql: str
    unit: str = USER


@dataclass(frozen=True, slots=True)
class Listing:
    """What is listed without being a difference. ``sql`` selects ``text``, in order."""

    note: Note
    sql: str
    unit: str = WHOLE


@dataclass(frozen=True, slots=True)
class ServiceChecks:
    """All that is read within one service's database."""

    checks: Sequence[Check]
    figures: Sequence[Figure]
    units: Units
    listings: Sequence[Listing] = ()


def answers_figure(template: str) -> Figure:
    """The number of stored answers."""
    return Figure("I8", template, "SELECT count(*) AS answers FROM answers")


HEARTBEAT: Final = Check(
    "I6",
    "heartbeat",
    """
SELECT 'heartbeat' AS key, 'the heartbeat is gone: nothing can be overdue' AS difference
 WHERE NOT EXISTS (SELECT FROM heartbeat)
""",
    unit=WHOLE,
)


async def run_checks(
    connection: AsyncConnection,
    found: AuditPass,
    service: ServiceChecks,
    *,
    overdue_s: float,
    touched: Mapping[str, Iterable[str]] | None = None,
) -> None:
    """Add the differences of all checks, all figures and all notes to ``found``.

    ``touched``: by unit, the ids to which checks, figures and notes are restricted, but for those
    about what is open.
    """
    for figure in service.figures:
        statements = _statements(figure.sql, service.units, figure.unit, touched)
        for values in await _sums(connection, statements):
            found.add_figure(figure.invariant, figure.template.format_map(values))
    for check in service.checks:
        # Counted in the database: the memory needed does not grow with the number of differences.
        for statement in _statements(_kept(check), service.units, check.unit, touched):
            await _run(connection, found, check, statement, overdue_s)
    for listing in service.listings:
        for statement in _statements(_listed(listing), service.units, listing.unit, touched):
            await _list(connection, found, listing, statement)


def _statements(
    sql: str, units: Units, unit: str, touched: Mapping[str, Iterable[str]] | None
) -> Iterator[sa.TextClause]:
    """The statement on the whole book, or on each batch of what was touched."""
    if touched is None or unit == WHOLE:
        yield sa.text(sql)
        return
    for ids in batches(touched[unit]):
        yield units[unit].of_ids(sql, ids)


async def _sums(
    connection: AsyncConnection, statements: Iterable[sa.TextClause]
) -> list[dict[str, Any]]:
    """The rows of all statements; the numbers of rows with the same texts are added up."""
    sums = dict[tuple[str, ...], dict[str, Any]]()
    for statement in statements:
        for row in (await connection.execute(statement)).mappings():
            texts = tuple(value for value in row.values() if isinstance(value, str))
            known = sums.get(texts, {})
            # A sum of bigints is a Decimal, which may be formatted as 1E+5.
            sums[texts] = {
                name: value if isinstance(value, str) else int(value) + known.get(name, 0)
                for name, value in row.items()
            }
    return [sums[texts] for texts in sorted(sums)]


def _kept(check: Check) -> str:
    return (
        f"SELECT key, difference, count(*) OVER () AS total FROM ({check.sql}) AS checked"  # noqa: S608 - a constant of this package
        f" WHERE difference IS NOT NULL ORDER BY key LIMIT {KEPT_MAX}"
    )


async def _run(
    connection: AsyncConnection,
    found: AuditPass,
    check: Check,
    sql: sa.TextClause,
    overdue_s: float,
) -> None:
    rows = (await connection.execute(sql, {"overdue_s": overdue_s})).all()
    invariants = check.invariants.split()
    for row in rows:
        found.add_difference(invariants, check.name, row.key, row.difference, certain=check.certain)
    for invariant in invariants if rows else ():
        found.more[invariant] += rows[0].total - len(rows)


def _listed(listing: Listing) -> str:
    return f"SELECT text, count(*) OVER () AS total FROM ({listing.sql}) AS listed LIMIT {KEPT_MAX}"  # noqa: S608 - a constant of this package


async def _list(
    connection: AsyncConnection, found: AuditPass, listing: Listing, statement: sa.TextClause
) -> None:
    rows = (await connection.execute(statement)).all()
    for row in rows:
        found.add_note(listing.note, row.text)
    if rows:
        found.more_notes[listing.note] += rows[0].total - len(rows)
