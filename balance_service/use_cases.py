"""Writes of accounts, decided batch by batch in one lane, and reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Final

from pydantic import TypeAdapter

from balance_service.errors import DeductionCancelled, LedgerEntryNotFound
from balance_service.locking import STRATEGIES, needs_row_lock
from balance_service.model import (
    BEGINNING,
    Account,
    AccountAt,
    AccountId,
    ChargeBalance,
    Command,
    DeductBalance,
    Entry,
    RefundDeduction,
    account_not_found,
)
from balance_service.store import account as store
from balance_service.store import past_account as past_store
from balance_service.tables import REQUEST_ONCE
from common.batching.decider import Decider, Saved
from common.batching.lane import Lane
from common.batching.loader import BatchLoader
from common.batching.outcomes import RowLocked, VersionConflict
from common.currencies import is_listed
from common.db.database import Database
from common.db.errors import StaleRead
from common.db.idempotency import IdempotencyRecords, IdempotencyStore
from common.db.repeat import read, read_by_id
from common.db.row_locks import AlsoRead
from common.db.statements import Connection
from common.errors import Refusal, RequestIdReused
from common.ids import new_id
from common.locking.locks import Locks
from common.paging import Found, Page
from common.request_key import RequestKey, Result

Posted = Result[Entry | None]
"""The ledger entry that a write made; None if there was nothing to refund."""

_BODY: Final[TypeAdapter[Entry | None]] = TypeAdapter(Entry | None)
_SEQUENCE_MAX: Final = 2**63 - 1


class Accounts:
    """The accounts of all users, as one replica writes and reads them."""

    def __init__(self, database: Database, locks: Locks, idempotency: IdempotencyStore) -> None:
        self._database = database
        self._found = BatchLoader("account", database, store.find_accounts)
        self._past = BatchLoader("past_account", database, past_store.find_past_accounts)
        self.lane: Lane[Command, Posted] = Lane(
            "account", database, _Decider(idempotency), locks, STRATEGIES, translate=_translate
        )

    async def close(self) -> None:
        """Refuse new commands and wait until those accepted are decided."""
        await self.lane.close()
        await self._found.close()
        await self._past.close()

    async def write(self, command: Command) -> Posted:
        """Carry the command out, or replay it.

        Raises AccountNotFound, InsufficientFunds, BalanceLimitExceeded, DeductionCancelled,
        InvalidField, RequestIdReused, ConflictRetriesExhausted, DatabaseUnavailable or Overloaded.
        """
        return await self.lane.submit(command)

    async def write_all(self, commands: Sequence[Command]) -> list[Posted | Exception]:
        """The outcome of each command by itself, in their order: as of ``write``.

        A command that is not decided before the running call ends has RequestInProgress. Raises
        Overloaded if the replica stops.
        """
        return await self.lane.submit_bulk(commands)

    async def get_account(self, account_id: AccountId) -> Account:
        """The account as last committed. Raises AccountNotFound."""
        account = await self._found.load(account_id)
        if account is None:
            raise account_not_found(account_id)
        return account

    async def get_past_account(self, asked: AccountAt) -> Account:
        """The account as of a time, by the ledger as last committed.

        Raises AccountNotFound before its first entry, or InvalidField for a time in the future.
        """
        return (await self._past.load(asked)).require(asked)

    async def get_entry(self, entry_id: str, user_id: str) -> Entry:
        """The user's entry. Raises LedgerEntryNotFound, also if it is another user's."""
        find = partial(store.read_entry, user_id=user_id)
        entry = await read_by_id(self._database, entry_id, find)
        if entry is None:
            raise LedgerEntryNotFound(user_id=user_id, entry_id=entry_id)
        return entry

    async def list_entries(self, account_id: AccountId, page: Page) -> Found[Entry]:
        """A page of the ledger, newest first."""
        before = int(page.after[0]) if page.after else _SEQUENCE_MAX

        async def entries_of(connection: Connection) -> list[Entry]:
            [account] = await store.find_accounts(connection, [account_id])
            if account is None:
                raise account_not_found(account_id)
            return await store.read_entries(
                connection, account_id, before=before, size=page.size + 1
            )

        entries = await read(self._database, entries_of)
        return Found(page, entries, lambda entry: [entry.sequence])


def _translate(constraint: str, command: Command) -> Refusal | None:
    """The refusal for a violated constraint."""
    if constraint == REQUEST_ONCE:
        # The record was deleted after 30 days; the ledger entry stays.
        return RequestIdReused(request_id=command.request_id)
    return None


@dataclass(slots=True)
class _Batch:
    """The accounts and deductions of one transaction, as its commands change them."""

    accounts: dict[AccountId, Account]
    blocked: frozenset[AccountId]
    now: datetime
    locked: bool
    """Whether the accounts are locked: none can change before they are saved."""
    deductions: dict[store.DeductionKey, Entry] = field(default_factory=dict)
    refunds: dict[store.DeductionKey, Entry] = field(default_factory=dict)


class _Decider(Decider[Command, Posted, _Batch]):
    async def load(
        self,
        connection: Connection,
        commands: Sequence[Command],
        records: AlsoRead,
        *,
        wait_for_locks: bool,
    ) -> _Batch:
        lock = wait_for_locks or any(needs_row_lock(command) for command in commands)
        keys = {_account_key(command) for command in commands}
        read = partial(store.load, lock=lock, wait_for_locks=wait_for_locks, also=records)
        loaded = await read(connection, keys)
        missing = {
            command.account_id
            for command in commands
            if isinstance(command, ChargeBalance)
            and command.account_id not in loaded.found
            and command.account_id not in loaded.blocked
            and is_listed(command.account_id.currency_code)
        }
        if missing:
            await store.open_accounts(connection, missing)
            loaded = await read(connection, keys)
        charged = {command.account_id for command in commands if isinstance(command, ChargeBalance)}
        behind = [
            account
            for account in loaded.found.values()
            if account.id in charged and not account.charges_counted
        ]
        if behind:
            await store.count_charges(connection, behind)
        return _Batch(loaded.found, loaded.blocked, loaded.now or BEGINNING, lock)

    async def load_after_records(
        self, connection: Connection, batch: _Batch, commands: Sequence[Command]
    ) -> None:
        """Find what the batch's refunds are about. Their accounts are locked by now."""
        named = {
            (command.user_id, command.deduct_request_id)
            for command in commands
            if isinstance(command, RefundDeduction)
        }
        if named:
            batch.deductions, batch.refunds = await store.find_deductions(connection, named)

    def keys(self, command: Command) -> Sequence[RequestKey]:
        if isinstance(command, RefundDeduction):
            return command.key, command.deduct_key
        return (command.key,)

    def blocked(self, batch: _Batch, command: Command) -> RowLocked | None:
        blocked = batch.blocked
        if not isinstance(command, RefundDeduction):
            return RowLocked(command.account_id) if command.account_id in blocked else None
        of_user = sorted(id_ for id_ in blocked if id_.user_id == command.user_id)
        return RowLocked(of_user[0]) if of_user else None

    def decide(self, batch: _Batch, records: IdempotencyRecords, command: Command) -> Posted:
        if isinstance(command, DeductBalance) and records.is_cancelled(command.key):
            raise DeductionCancelled(user_id=command.user_id, request_id=command.request_id)
        replayed = records.replay(command, _BODY)
        if replayed is not None:
            return replayed
        match command:
            case ChargeBalance():
                entry: Entry | None = _charge(batch, command)
            case DeductBalance():
                entry = _deduct(batch, command)
            case RefundDeduction():
                entry, replay = _refund(batch, records, command)
                records.answer(command, entry, _BODY)
                return Result(entry, replayed=replay)
        return records.answer(command, entry, _BODY)

    async def save(
        self, connection: Connection, batch: _Batch, commands: Sequence[Command]
    ) -> Saved:
        changed = [account for account in batch.accounts.values() if account.entries]
        if batch.locked:
            entries = [entry for account in changed for entry in account.entries]
            return Saved([*store.saving(changed), *store.adding(entries)])
        saved = await store.save(connection, changed)
        entries = [entry for account in changed if account.id in saved for entry in account.entries]
        # Without row locks an account may have changed: none of its commands is saved then.
        lost = {account.id for account in changed} - saved
        conflicts = {
            position: VersionConflict()
            for position, command in enumerate(commands)
            if not isinstance(command, RefundDeduction) and command.account_id in lost
        }
        return Saved(store.adding(entries), conflicts)


def _account_key(command: Command) -> store.AccountKey:
    # A refund does not know its deduction's currency: it locks all accounts of the user, and so
    # waits for any deduction that is in flight.
    if isinstance(command, RefundDeduction):
        return command.user_id, None
    return command.account_id


def _charge(batch: _Batch, command: ChargeBalance) -> Entry:
    # A charge that found no row has inserted one, unless it is refused for its currency.
    account = batch.accounts.get(command.account_id) or Account(command.account_id)
    return account.charge(command, new_id(), batch.now)


def _deduct(batch: _Batch, command: DeductBalance) -> Entry:
    account = batch.accounts.get(command.account_id)
    if account is None or not account.exists:
        raise account_not_found(command.account_id)
    entry = account.deduct(command, new_id(), batch.now)
    batch.deductions[command.user_id, command.request_id] = entry
    return entry


def _refund(
    batch: _Batch, records: IdempotencyRecords, command: RefundDeduction
) -> tuple[Entry | None, bool]:
    """The refund's entry, and whether the deduction had been refunded or cancelled before."""
    deduction_id = (command.user_id, command.deduct_request_id)
    refunded = batch.refunds.get(deduction_id)
    if refunded is not None or records.is_cancelled(command.deduct_key):
        return refunded, True
    deduction = batch.deductions.get(deduction_id)
    account = batch.accounts.get(deduction.account_id) if deduction else None
    if deduction is not None and account is None:
        # Its account was inserted after the rows were locked: run the batch again and lock it too.
        raise StaleRead
    # In the transaction of the refund, or alone: the deduction, late or repeated, is refused.
    records.cancel(command.deduct_key)
    if deduction is None or account is None:
        return None, False
    entry = account.refund(command, deduction, new_id(), batch.now)
    batch.refunds[deduction_id] = entry
    return entry, False
