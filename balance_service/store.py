"""The balance service's SQL: set-based statements, each for a whole batch. Never commits."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from balance_service.model import BEGINNING, Account, AccountId, Entry, Kind
from balance_service.tables import accounts, ledger_entries
from common.sets import arrays, unnest


@dataclass(slots=True)
class Loaded:
    """The accounts a batch is about."""

    accounts: dict[AccountId, Account] = field(default_factory=dict)
    held: set[AccountId] = field(default_factory=set)
    """Accounts that exist but are locked by another transaction."""
    now: datetime = BEGINNING
    """The database's clock, read when the rows were ours."""

    def of_user(self, user_id: str) -> list[AccountId]:
        return sorted(id_ for id_ in (*self.accounts, *self.held) if id_.user_id == user_id)


# -- accounts ------------------------------------------------------------------------------------

# A wanted row without a currency stands for all accounts of its user.
_wanted = unnest("wanted", user_id=sa.Text, currency_code=sa.Text)
_is_wanted: Final = sa.and_(
    accounts.c.user_id == _wanted.c.user_id,
    sa.or_(_wanted.c.currency_code.is_(None), accounts.c.currency_code == _wanted.c.currency_code),
)
_account_key: Final = (accounts.c.user_id, accounts.c.currency_code)
_state: Final = (accounts.c.available_minor, accounts.c.version, accounts.c.update_time)
_now: Final = sa.func.clock_timestamp(type_=accounts.c.update_time.type).label("now")

_READ: Final = sa.select(*_account_key, *_state, _now).join_from(_wanted, accounts, _is_wanted)
_READ_KEYS: Final = sa.select(*_account_key).join_from(_wanted, accounts, _is_wanted)


def _locking(*, skip_locked: bool) -> sa.Select[Any]:
    """The wanted rows, locked in ascending order: a sort comes before its FOR UPDATE.

    FOR NO KEY UPDATE is the row lock that an UPDATE takes. The clock is read outside, when the row
    is ours: the SELECT list of the locking query is computed before the wait.
    """
    locked = (
        sa.select(*_account_key, *_state)
        .join_from(_wanted, accounts, _is_wanted)
        .order_by(*_account_key)
        .with_for_update(of=accounts, key_share=True, skip_locked=skip_locked)
        .cte("locked")
        .prefix_with("MATERIALIZED", dialect="postgresql")
    )
    return sa.select(locked, _now)


_LOCK: Final = _locking(skip_locked=False)
_LOCK_FREE: Final = _locking(skip_locked=True)

_opened = unnest("opened", user_id=sa.Text, currency_code=sa.Text)
_OPEN: Final = (
    insert(accounts)
    .from_select(
        ["user_id", "currency_code", "available_minor", "version", "update_time"],
        sa.select(
            _opened.c.user_id,
            _opened.c.currency_code,
            sa.literal(0, sa.BigInteger),
            sa.literal(0, sa.BigInteger),
            sa.func.clock_timestamp(),
        ).order_by(_opened.c.user_id, _opened.c.currency_code),
    )
    .on_conflict_do_nothing()
)

_changed = unnest(
    "changed",
    user_id=sa.Text,
    currency_code=sa.Text,
    loaded_version=sa.BigInteger,
    available_minor=sa.BigInteger,
    version=sa.BigInteger,
    update_time=sa.DateTime(timezone=True),
)
# An UPDATE locks in the order of its plan. Rows that may not be ours yet are therefore taken in
# ascending order first; one that moved, or that somebody holds, is left out.
_unmoved = (
    sa.select(_changed)
    .join_from(
        _changed,
        accounts,
        sa.and_(
            accounts.c.user_id == _changed.c.user_id,
            accounts.c.currency_code == _changed.c.currency_code,
        ),
    )
    .where(accounts.c.version == _changed.c.loaded_version)
    .order_by(_changed.c.user_id, _changed.c.currency_code)
    .with_for_update(of=accounts, key_share=True, skip_locked=True)
    .cte("unmoved")
    .prefix_with("MATERIALIZED", dialect="postgresql")
)
_SAVE: Final = (
    sa.update(accounts)
    .values(
        available_minor=_unmoved.c.available_minor,
        version=_unmoved.c.version,
        update_time=_unmoved.c.update_time,
    )
    .where(
        accounts.c.user_id == _unmoved.c.user_id,
        accounts.c.currency_code == _unmoved.c.currency_code,
    )
    .returning(*_account_key)
)


async def load(
    connection: AsyncConnection,
    wanted: Collection[tuple[str, str | None]],
    *,
    lock: bool,
    patient: bool,
) -> Loaded:
    """Read the wanted accounts, locked or not; ``patient`` waits for rows that others hold."""
    statement = (_LOCK if patient else _LOCK_FREE) if lock else _READ
    parameters = arrays(
        "wanted",
        user_id=[user_id for user_id, _ in wanted],
        currency_code=[currency_code for _, currency_code in wanted],
    )
    loaded = Loaded()
    for user_id, currency_code, *state, now in await connection.execute(statement, parameters):
        account_id = AccountId(user_id, currency_code)
        loaded.accounts[account_id] = Account(account_id, *state)
        loaded.now = max(loaded.now, now)
    if lock and any(pair not in loaded.accounts for pair in wanted):
        # Not there, or skipped because somebody holds it? One that came into being in between
        # counts as held too: it is waited for, and found.
        existing = await connection.execute(_READ_KEYS, parameters)
        loaded.held = {AccountId(*row) for row in existing} - loaded.accounts.keys()
    return loaded


async def open_accounts(connection: AsyncConnection, missing: Iterable[AccountId]) -> None:
    """Create empty rows for accounts about to have their first charge."""
    ids = sorted(missing)
    await connection.execute(
        _OPEN,
        arrays(
            "opened",
            user_id=[id_.user_id for id_ in ids],
            currency_code=[id_.currency_code for id_ in ids],
        ),
    )


async def save(connection: AsyncConnection, changed: Iterable[Account]) -> set[AccountId]:
    """Write the accounts whose version is still the loaded one; returns which those were."""
    rows = sorted(changed, key=lambda account: account.id)
    if not rows:
        return set()
    saved = await connection.execute(
        _SAVE,
        arrays(
            "changed",
            user_id=[row.id.user_id for row in rows],
            currency_code=[row.id.currency_code for row in rows],
            loaded_version=[row.loaded_version for row in rows],
            available_minor=[row.available_minor for row in rows],
            version=[row.version for row in rows],
            update_time=[row.update_time for row in rows],
        ),
    )
    return {AccountId(*row) for row in saved}


# -- ledger --------------------------------------------------------------------------------------

_entry = unnest(
    "entry",
    user_id=sa.Text,
    currency_code=sa.Text,
    sequence=sa.BigInteger,
    entry_id=sa.UUID(as_uuid=False),
    kind=sa.Text,
    amount_minor=sa.BigInteger,
    balance_after_minor=sa.BigInteger,
    request_id=sa.Text,
    order_id=sa.Text,
    refund_of=sa.Text,
    create_time=sa.DateTime(timezone=True),
)
_ADD: Final = sa.insert(ledger_entries).from_select(
    list(_entry.c.keys()),
    sa.select(_entry).order_by(_entry.c.user_id, _entry.c.currency_code, _entry.c.sequence),
)

_named = unnest("named", user_id=sa.Text, request_id=sa.Text)
_FIND_DEDUCTIONS: Final = sa.select(ledger_entries).join_from(
    _named,
    ledger_entries,
    sa.and_(
        ledger_entries.c.user_id == _named.c.user_id,
        ledger_entries.c.request_id == _named.c.request_id,
        ledger_entries.c.kind == Kind.DEDUCT,
    ),
)
_FIND_REFUNDS: Final = sa.select(ledger_entries).join_from(
    _named,
    ledger_entries,
    sa.and_(
        ledger_entries.c.user_id == _named.c.user_id,
        ledger_entries.c.refund_of == _named.c.request_id,
    ),
)


async def add_entries(connection: AsyncConnection, entries: Sequence[Entry]) -> None:
    """Append to the ledger."""
    if not entries:
        return
    await connection.execute(
        _ADD,
        arrays(
            "entry",
            user_id=[entry.account_id.user_id for entry in entries],
            currency_code=[entry.account_id.currency_code for entry in entries],
            sequence=[entry.sequence for entry in entries],
            entry_id=[entry.entry_id for entry in entries],
            kind=[entry.kind for entry in entries],
            amount_minor=[entry.amount_minor for entry in entries],
            balance_after_minor=[entry.balance_after_minor for entry in entries],
            request_id=[entry.request_id for entry in entries],
            order_id=[entry.order_id for entry in entries],
            refund_of=[entry.refund_of for entry in entries],
            create_time=[entry.create_time for entry in entries],
        ),
    )


Deduction = tuple[str, str]
"""A deduction by (user_id, request_id)."""


async def find_deductions(
    connection: AsyncConnection, named: Collection[Deduction]
) -> tuple[dict[Deduction, Entry], dict[Deduction, Entry]]:
    """The deductions that happened, and their refunds, by the deduction they are about."""
    parameters = arrays(
        "named",
        user_id=[user_id for user_id, _ in named],
        request_id=[request_id for _, request_id in named],
    )
    deducted = await connection.execute(_FIND_DEDUCTIONS, parameters)
    deductions = {(row.user_id, row.request_id): _to_entry(row) for row in deducted}
    refunded = await connection.execute(_FIND_REFUNDS, parameters)
    refunds = {(row.user_id, row.refund_of): _to_entry(row) for row in refunded}
    return deductions, refunds


# -- reads ---------------------------------------------------------------------------------------

_ONE: Final = sa.select(*_account_key, *_state).where(
    accounts.c.user_id == sa.bindparam("user_id"),
    accounts.c.currency_code == sa.bindparam("currency_code"),
    accounts.c.version > 0,
)
_NEWEST: Final = (
    sa.select(ledger_entries)
    .where(
        ledger_entries.c.user_id == sa.bindparam("user_id"),
        ledger_entries.c.currency_code == sa.bindparam("currency_code"),
        ledger_entries.c.sequence < sa.bindparam("before"),
    )
    .order_by(ledger_entries.c.sequence.desc())
    .limit(sa.bindparam("size"))
)


async def read_account(connection: AsyncConnection, account_id: AccountId) -> Account | None:
    """One account as it was last committed."""
    row = (await connection.execute(_ONE, account_id._asdict())).one_or_none()
    if row is None:
        return None
    return Account(account_id, row.available_minor, row.version, row.update_time)


async def read_entries(
    connection: AsyncConnection, account_id: AccountId, *, before: int, size: int
) -> list[Entry]:
    """At most ``size`` entries with a sequence below ``before``, newest first."""
    rows = await connection.execute(
        _NEWEST, {**account_id._asdict(), "before": before, "size": size}
    )
    return [_to_entry(row) for row in rows]


def _to_entry(row: sa.Row[tuple[object, ...]]) -> Entry:
    return Entry(
        row.entry_id,
        AccountId(row.user_id, row.currency_code),
        row.sequence,
        Kind(row.kind),
        row.amount_minor,
        row.balance_after_minor,
        row.request_id,
        row.order_id,
        row.refund_of,
        row.create_time,
    )
