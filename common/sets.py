"""Whole batches as arguments of one statement: arrays that PostgreSQL unnests into rows.

The statement is built once, with named parameters; executing it gives one array a column, in one
round trip however many rows. Its text does not depend on their number, so it is prepared once.

    KEYS = unnest("keys", user_id=sa.Text, currency_code=sa.Text)
    FIND = sa.select(accounts).join_from(KEYS, accounts, …)
    await connection.execute(FIND, arrays("keys", user_id=[…], currency_code=[…]))
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY


def unnest(name: str, /, **columns: type[Any] | sa.types.TypeEngine[Any]) -> sa.TableValuedAlias:
    """A FROM element called ``name`` whose rows come from one array parameter per column."""
    parameters = [
        sa.bindparam(f"{name}_{column}", type_=ARRAY(of_type))
        for column, of_type in columns.items()
    ]
    shape = [sa.column(column, of_type) for column, of_type in columns.items()]
    return sa.func.unnest(*parameters).table_valued(*shape).render_derived(name=name)


def arrays(name: str, /, **columns: Sequence[Any]) -> dict[str, Sequence[Any]]:
    """The parameters for ``unnest(name, …)``; all columns must be of one length."""
    assert len({len(values) for values in columns.values()}) <= 1, "columns of one length"
    return {f"{name}_{column}": values for column, values in columns.items()}
