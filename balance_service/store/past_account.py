"""SQL for accounts as of a time in the past: read from the ledger."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import sqlalchemy as sa

from balance_service.model import Account, AccountAt, AccountId, PastAccount
from balance_service.tables import accounts, ledger_entries
from common.db.row_locks import CLOCK, TIME
from common.db.statements import Connection, Row
from common.db.unnest import arrays_of_tuples, same, unnest

# An account's sequence has no gap and its times never decrease, so its last entry up to a time is
# found by bisection over the primary key: 20 look-ups in a million entries, and no index on times.
_zero = sa.literal(0, sa.BigInteger)
_asked = unnest("asked", *accounts.c[AccountId._fields], time=TIME, position=sa.BigInteger)
_bisection = (
    sa.select(*_asked.c, _zero.label("low"), accounts.c.version.label("high"))
    .join_from(_asked, accounts, same(accounts, _asked, AccountId._fields))
    .cte("bisection", recursive=True)
)
_middle = (_bisection.c.low + _bisection.c.high + 1) // 2


def _entry(
    name: str, of: sa.FromClause, sequence: sa.ColumnElement[int], *columns: sa.ColumnElement[Any]
) -> sa.FromClause:
    """The entry of an account with this sequence. LIMIT lets each be looked up by itself."""
    found = sa.select(*columns).where(
        *(ledger_entries.c[key] == of.c[key] for key in AccountId._fields),
        ledger_entries.c.sequence == sequence,
    )
    return found.limit(1).lateral(name)


_at_middle = _entry("at_middle", _bisection, _middle, *ledger_entries.c["sequence", "create_time"])
_is_up_to_then = _at_middle.c.create_time <= _bisection.c.time
_bisection = _bisection.union_all(
    sa.select(
        *_bisection.c[tuple(_asked.c.keys())],
        sa.case((_is_up_to_then, _at_middle.c.sequence), else_=_bisection.c.low),
        sa.case((_is_up_to_then, _bisection.c.high), else_=_at_middle.c.sequence - 1),
    )
    .select_from(_bisection.join(_at_middle, sa.true()))
    .where(_bisection.c.low < _bisection.c.high)
)
_last = _entry("last", _asked, _bisection.c.low, *ledger_entries.c)
_PAST: Final = (
    sa.select(_last, sa.func.greatest(CLOCK, accounts.c.update_time).label("present_time"))
    .select_from(_asked)
    .outerjoin(accounts, same(accounts, _asked, AccountId._fields))
    .outerjoin(
        _bisection,
        sa.and_(_bisection.c.position == _asked.c.position, _bisection.c.low == _bisection.c.high),
    )
    .outerjoin(_last, sa.true())
    .order_by(_asked.c.position)
)


async def find_past_accounts(
    connection: Connection, asked: Sequence[AccountAt]
) -> list[PastAccount]:
    """The accounts as of these times by the ledger as committed now, in their order."""
    tuples = [(*each, position) for position, each in enumerate(asked)]
    rows = await connection.execute(_PAST, arrays_of_tuples(_asked, tuples))
    return [_to_past_account(each, row) for each, row in zip(asked, rows, strict=True)]


def _to_past_account(asked: AccountAt, row: Row) -> PastAccount:
    if row.sequence is None:
        return PastAccount(None, row.present_time)
    account = Account(asked.account_id, row.balance_after_minor, row.sequence, row.create_time)
    return PastAccount(account, row.present_time)
