"""Checks on a part of a book: every user, product or campaign that was touched since a time, whole.

The time of a row is that of its statement, and its transaction may commit later than one with a
later time. So the ids are found by time, less the longest transaction, and then all rows of these
ids are read, whatever their time.

A check names tables. Before it stands a query by the name of each table, which has the rows of the
part alone: the same check reads the whole book, or a part of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY

USER: Final = "user"
PRODUCT: Final = "product"
CAMPAIGN: Final = "campaign"
WHOLE: Final = "whole"
"""No part: the check reads every row, since it reads few, or by an index on what is open."""


@dataclass(frozen=True, slots=True)
class Unit:
    """The rows that a check needs together, such as all of one user."""

    touched: str
    """SQL: the ids with a row at or after ``:since``, in one column."""
    tables: Mapping[str, str]
    """SQL: by table, the condition on the rows of the ids, ``user_id = ANY ({ids})`` for instance.
    A condition may read a table before it, restricted already. Other tables are read whole."""

    def since(self, sql: str, since: datetime) -> sa.TextClause:
        """The statement on the units that were touched since then."""
        touched = f"touched (id) AS MATERIALIZED ({self.touched})"
        restricted = ", ".join([touched, *self._restricted("SELECT id FROM touched")])
        return sa.text(f"WITH {restricted} {sql}").bindparams(_since(since))

    def of_ids(self, sql: str, ids: Sequence[str]) -> sa.TextClause:
        """The statement on these units, whose ids are texts."""
        return sa.text(f"WITH {', '.join(self._restricted(':ids'))} {sql}").bindparams(
            sa.bindparam("ids", ids, ARRAY(sa.Text))
        )

    def touched_ids(self, since: datetime) -> sa.TextClause:
        """The ids that were touched since then, as texts in the order of code points."""
        return sa.text(
            'SELECT DISTINCT id::text COLLATE "C" AS id'  # noqa: S608 - constants
            f" FROM ({self.touched}) AS touched (id) WHERE id IS NOT NULL ORDER BY 1"
        ).bindparams(_since(since))

    def _restricted(self, ids: str) -> Iterator[str]:
        """A query by the name of each table. In it, that name still is the table's."""
        for table, condition in self.tables.items():
            rows = f"SELECT * FROM {table} WHERE {condition.format(ids=ids)}"  # noqa: S608 - constants
            yield f"{table} AS NOT MATERIALIZED ({rows})"


Units = Mapping[str, Unit]
"""The units of a service, by name."""


def statement(sql: str, units: Units, unit: str, since: datetime | None) -> sa.TextClause:
    """The statement on the whole book, or on what was touched since a time."""
    return sa.text(sql) if since is None or unit == WHOLE else units[unit].since(sql, since)


def _since(since: datetime) -> sa.BindParameter[datetime]:
    return sa.bindparam("since", since, sa.DateTime(timezone=True))
