"""Checks on a part of a book: every user, product or campaign that was touched since a time, whole.

The time of a row is that of its statement, and its transaction may commit later than one with a
later time. So the ids are found by time, less the longest transaction, once for all checks
(``deploy.audit.touched``), and then all rows of these ids are read, whatever their time.

A check names tables. Before it stands a query by the name of each table, which has the rows of the
part alone: the same check reads the whole book, or a part of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Final

import sqlalchemy as sa
from google.protobuf.descriptor import FileDescriptor
from sqlalchemy.dialects.postgresql import ARRAY

USER: Final = "user"
PRODUCT: Final = "product"
CAMPAIGN: Final = "campaign"
WHOLE: Final = "whole"
"""No part: the check reads every row, since it reads few, or by an index on what is open."""

ANSWERED_SINCE: Final = "create_time >= :since AND state <> 'CANCELLED'"
"""SQL: the answers since a time, by the index of the clean-up. A tombstone is written with the
answer of the call that cancels, which is about the same user."""
BATCH_MAX: Final = 500
"""Ids in one statement. Their rows are streamed or counted, however many they are."""


@dataclass(frozen=True, slots=True)
class Unit:
    """The rows that a check needs together, such as all of one user."""

    touched: str
    """SQL: the ids with a row at or after ``:since``, in one column."""
    tables: Mapping[str, str]
    """SQL: by table, the condition on the rows of the ids, ``user_id = ANY ({ids})`` for instance;
    an index has to serve it. ``{texts}`` are the ids as texts. A condition may read a table before
    it, restricted already. Other tables are read whole, or by a join."""
    type: str = "text"
    """The SQL type of an id."""

    def of_ids(self, sql: str, ids: Sequence[str]) -> sa.TextClause:
        """The statement on these units, whose ids are texts."""
        return sa.text(f"WITH {', '.join(self._restricted())} {sql}").bindparams(
            sa.bindparam("ids", ids, ARRAY(sa.Text))
        )

    def touched_ids(self, since: datetime) -> sa.TextClause:
        """The ids that were touched since then, as texts in the order of code points."""
        return sa.text(
            'SELECT DISTINCT id::text COLLATE "C" AS id'  # noqa: S608 - constants
            f" FROM ({self.touched}) AS touched (id) WHERE id IS NOT NULL ORDER BY 1"
        ).bindparams(sa.bindparam("since", since, sa.DateTime(timezone=True)))

    def _restricted(self) -> Iterator[str]:
        """A query by the name of each table. In it, that name still is the table's."""
        texts = "CAST(:ids AS text[])"
        for table, condition in self.tables.items():
            rows = condition.format(ids=f"CAST(:ids AS {self.type}[])", texts=texts)
            yield f"{table} AS NOT MATERIALIZED (SELECT * FROM {table} WHERE {rows})"  # noqa: S608 - constants


Units = Mapping[str, Unit]
"""The units of a service, by name."""


def answers_of_users(service: FileDescriptor) -> str:
    """SQL: the condition on the stored answers of users, of all methods that have some.

    The methods are named for the primary key, which begins with them.
    """
    names = sorted(
        f"'{method.name}'"
        for each in service.services_by_name.values()
        for method in each.methods
        if "request_id" in method.input_type.fields_by_name
    )
    return f"method IN ({', '.join(names)}) AND scope = ANY ({{ids}})"


def batches(ids: Iterable[str]) -> Iterator[tuple[str, ...]]:
    """The ids in batches; a single empty batch if there are none, so that counts of it are 0."""
    left = iter(ids)
    yield tuple(islice(left, BATCH_MAX))
    while some := tuple(islice(left, BATCH_MAX)):
        yield some
