"""SQL for accounts and their ledger: lock and save accounts, add entries, read both."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from balance_service.model import Account, AccountId, Entry, Kind
from balance_service.tables import accounts, ledger_entries
from common.db.row_locks import CLOCK, AlsoRead, Locked, RowLocks, locked
from common.db.rows import from_row, one_per_key
from common.db.statements import Connection, Row
from common.db.unnest import arrays, insert_from, looked_up, same, unnest
from common.db.writes import Write
from common.identity.origin import stored_origin

AccountKey = tuple[str, str | None]
"""An account by (user_id, currency_code); without a currency, all accounts of the user."""


# -- accounts ------------------------------------------------------------------------------------

_account_key: Final = accounts.c[AccountId._fields]


def _matches(wanted: sa.TableValuedAlias) -> sa.ColumnElement[bool]:
    currency_code = wanted.c.currency_code
    return sa.and_(
        looked_up(accounts.c.user_id, wanted.c.user_id),
        sa.or_(currency_code.is_(None), accounts.c.currency_code == currency_code),
    )


_ACCOUNTS: Final[RowLocks[AccountKey]] = RowLocks(accounts, *AccountId._fields, matches=_matches)

_opened = unnest("opened", *_account_key)
_zero = sa.literal(0, sa.BigInteger)
_OPEN: Final = (
    insert(accounts)
    .from_select(
        ["user_id", "currency_code", "available_minor", "version", "update_time"],
        sa.select(*_opened.c, _zero, _zero, CLOCK).order_by(*_opened.c),
    )
    .on_conflict_do_nothing()
)

# Up to the account's version: entries that were added since it was read are not its own yet. The
# kind is not compared by equality: all entries of the kind could be read, by an index in which it
# is the last column.
_behind = unnest("behind", *_account_key, *accounts.c["version", "charged_at_version"])
_COUNT_CHARGES: Final = (
    sa.select(
        *_behind.c[AccountId._fields], sa.func.sum(ledger_entries.c.amount_minor).label("charged")
    )
    .join_from(
        _behind,
        ledger_entries,
        sa.and_(
            same(ledger_entries, _behind, AccountId._fields),
            ledger_entries.c.kind.is_not_distinct_from(Kind.CHARGE),
            ledger_entries.c.sequence > _behind.c.charged_at_version,
            ledger_entries.c.sequence <= _behind.c.version,
        ),
    )
    .group_by(*_behind.c[AccountId._fields])
)

_changed = unnest("changed", *accounts.c, loaded_version=sa.BigInteger)
# An UPDATE locks rows in the order of its plan. Rows that may not be locked yet are therefore
# locked in ascending order first. A row that changed, or that another transaction has locked, is
# left out.
_unchanged = locked(
    accounts,
    sa.select(_changed)
    .join_from(_changed, accounts, same(accounts, _changed, AccountId._fields))
    .where(accounts.c.version == _changed.c.loaded_version),
    order_by=list(_changed.c[AccountId._fields]),
    skip_locked=True,
    name="unchanged",
)
_WRITTEN: Final = (
    *("available_minor", "version", "update_time"),
    *("charged_minor", "charged_at_version"),
)
_SAVE: Final = (
    sa.update(accounts)
    .values({name: _unchanged.c[name] for name in _WRITTEN})
    .where(same(accounts, _unchanged, AccountId._fields))
    .returning(*_account_key)
)


async def load(
    connection: Connection,
    keys: Collection[AccountKey],
    *,
    lock: bool,
    wait_for_locks: bool,
    also: AlsoRead | None = None,
) -> Locked[AccountId, Account]:
    """Read the accounts, locked or not (``RowLocks``); ``also`` may be read if they are locked."""
    if lock:
        locked_rows = await _ACCOUNTS.lock(
            connection, keys, wait_for_locks=wait_for_locks, also=also
        )
    else:
        locked_rows = await _ACCOUNTS.read(connection, keys)
    found = {account.id: account for account in map(_to_account, locked_rows.found.values())}
    blocked = frozenset(AccountId(str(user), str(code)) for user, code in locked_rows.blocked)
    return Locked(found, blocked, locked_rows.now)


async def open_accounts(connection: Connection, missing: Iterable[AccountId]) -> None:
    """Insert empty rows for accounts that are about to have their first charge."""
    await connection.execute(_OPEN, arrays(_opened, sorted(missing)))


async def count_charges(connection: Connection, behind: Sequence[Account]) -> None:
    """Bring the accounts' sums of charges up to their versions, from the ledger."""
    rows = [
        {
            "user_id": account.id.user_id,
            "currency_code": account.id.currency_code,
            "version": account.version,
            "charged_at_version": account.charged_at_version,
        }
        for account in behind
    ]
    found = await connection.execute(_COUNT_CHARGES, arrays(_behind, rows))
    charged = {AccountId(row.user_id, row.currency_code): int(row.charged) for row in found}
    for account in behind:
        account.count_charges(charged.get(account.id, 0))


async def save(connection: Connection, changed: Iterable[Account]) -> set[AccountId]:
    """Write the accounts whose version is still the loaded one; returns which those were."""
    return {
        AccountId(*row)
        for one in saving(changed)
        for row in await connection.execute(one.statement, one.parameters)
    }


def saving(changed: Iterable[Account]) -> list[Write]:
    """The write of accounts that are locked, each still at its loaded version."""
    rows = [
        {
            "user_id": account.id.user_id,
            "currency_code": account.id.currency_code,
            "available_minor": account.available_minor,
            "version": account.version,
            "update_time": account.update_time,
            "charged_minor": account.charged_minor,
            "charged_at_version": account.charged_at_version,
            "loaded_version": account.loaded_version,
        }
        for account in changed
    ]
    return [Write(_SAVE, arrays(_changed, rows), len(rows))] if rows else []


# -- ledger --------------------------------------------------------------------------------------

_added = unnest("entry", *ledger_entries.c)
_ADD: Final = insert_from(ledger_entries, _added, (*AccountId._fields, "sequence"))

DeductionKey = tuple[str, str]
"""A deduction by (user_id, request_id)."""

_named = unnest("named", *ledger_entries.c["user_id", "request_id"])
# A request has one deduction, and that one refund. LIMIT lets each be looked up by itself, by all
# columns of its unique index: a join may read all entries of the user, or all refunds, if there
# were few when it was planned.
_deduction = (
    sa.select(ledger_entries)
    .where(
        ledger_entries.c.user_id == _named.c.user_id,
        ledger_entries.c.request_id == _named.c.request_id,
        ledger_entries.c.kind == Kind.DEDUCT,
    )
    .limit(1)
    .lateral("deduction")
)
_FIND_DEDUCTIONS: Final = sa.select(_deduction).select_from(_named.join(_deduction, sa.true()))
_refund = (
    sa.select(ledger_entries)
    .where(
        ledger_entries.c.user_id == _named.c.user_id,
        ledger_entries.c.refund_of == _named.c.request_id,
    )
    .limit(1)
    .lateral("refund")
)
_FIND_REFUNDS: Final = sa.select(_refund).select_from(_named.join(_refund, sa.true()))


def adding(entries: Sequence[Entry]) -> list[Write]:
    """The write that appends to the ledger."""
    return [Write(_ADD, arrays(_added, entries), len(entries))] if entries else []


async def find_deductions(
    connection: Connection, named: Collection[DeductionKey]
) -> tuple[dict[DeductionKey, Entry], dict[DeductionKey, Entry]]:
    """The deductions that happened, and their refunds, both by deduction."""
    parameters = arrays(
        _named, [{"user_id": user_id, "request_id": request_id} for user_id, request_id in named]
    )
    deducted = await connection.execute(_FIND_DEDUCTIONS, parameters)
    deductions = {(row.user_id, row.request_id): _to_entry(row) for row in deducted}
    refunded = await connection.execute(_FIND_REFUNDS, parameters)
    refunds = {(row.user_id, row.refund_of): _to_entry(row) for row in refunded}
    return deductions, refunds


# -- reads ---------------------------------------------------------------------------------------

# No index has entry_id: all entries of the user are read, over an index that begins with user_id.
_ENTRY: Final = sa.select(ledger_entries).where(
    ledger_entries.c.user_id == sa.bindparam("user_id"),
    ledger_entries.c.entry_id == sa.bindparam("entry_id"),
)
_LIST: Final = (
    sa.select(ledger_entries)
    .where(
        ledger_entries.c.user_id == sa.bindparam("user_id"),
        ledger_entries.c.currency_code == sa.bindparam("currency_code"),
        ledger_entries.c.sequence < sa.bindparam("before"),
    )
    .order_by(ledger_entries.c.sequence.desc())
    .limit(sa.bindparam("size"))
)


async def find_accounts(
    connection: Connection, account_ids: Sequence[AccountId]
) -> list[Account | Exception | None]:
    """These accounts as last committed, in their order; None for one without an entry."""
    found = (await _ACCOUNTS.read(connection, account_ids)).found
    begun = {key: row for key, row in found.items() if row.version > 0}
    return one_per_key(account_ids, begun, _to_account)


async def read_entry(connection: Connection, entry_id: str, user_id: str) -> Entry | None:
    """One entry of the user, in any currency, as last committed."""
    asked = {"entry_id": entry_id, "user_id": user_id}
    row = (await connection.execute(_ENTRY, asked)).one_or_none()
    return None if row is None else _to_entry(row)


async def read_entries(
    connection: Connection, account_id: AccountId, *, before: int, size: int
) -> list[Entry]:
    """At most ``size`` entries with a sequence below ``before``, newest first."""
    asked = {**account_id._asdict(), "before": before, "size": size}
    rows = await connection.execute(_LIST, asked)
    return [_to_entry(row) for row in rows]


def _to_account(row: Row) -> Account:
    account_id = AccountId(row.user_id, row.currency_code)
    return Account(
        account_id,
        row.available_minor,
        row.version,
        row.update_time,
        row.charged_minor,
        row.charged_at_version,
    )


def _to_entry(row: Row) -> Entry:
    account_id = AccountId(row.user_id, row.currency_code)
    return from_row(
        Entry,
        row,
        account_id=account_id,
        kind=Kind(row.kind),
        origin=stored_origin(row.origin),
    )
