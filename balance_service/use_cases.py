"""What the balance service does: the writes, decided batch by batch in one lane, and the reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic import TypeAdapter
from sqlalchemy.ext.asyncio import AsyncConnection

from balance_service import store
from balance_service.locking import STRATEGIES, lock_key, waits_for_rows
from balance_service.model import (
    Account,
    AccountId,
    ChargeBalance,
    Command,
    DeductBalance,
    Entry,
    RefundDeduction,
    account_not_found,
    deduction_cancelled,
)
from balance_service.tables import REQUEST_ONCE, answers
from common.answers import AnswerBook, Answers
from common.database import Database, Overtaken, reading
from common.errors import Refusal, RequestIdReused
from common.ids import new_id
from common.lanes import Held, Lane, Limits, Moved
from common.locking import Locks
from common.paging import Page

_BODY: Final[TypeAdapter[Entry | None]] = TypeAdapter(Entry | None)
_NEWEST: Final = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Posted:
    """What a write did: its ledger entry, or None if there was nothing to refund."""

    entry: Entry | None
    replayed: bool


class Balances:
    """The accounts of all users, seen from one replica."""

    def __init__(self, database: Database, locks: Locks) -> None:
        self._database = database
        self._answers = Answers(answers)
        self.lane: Lane[Command] = Lane(
            "account",
            database,
            self._decide,
            locks,
            lock_key=lock_key,
            translate=_translate,
            limits=Limits(rounds_max=STRATEGIES[ChargeBalance].rounds_max),
        )

    async def write(self, command: Command) -> Posted:
        """Carry the command out, or replay what it did.

        Raises AccountNotFound, InsufficientFunds, BalanceLimitExceeded, DeductionCancelled,
        RequestIdReused, ConflictRetriesExhausted, DatabaseUnavailable or Overloaded.
        """
        posted: Posted = await self.lane.submit(command)
        return posted

    async def get(self, account_id: AccountId) -> Account:
        """The account as last committed. Raises AccountNotFound."""
        async with reading(self._database) as connection:
            account = await store.read_account(connection, account_id)
        if account is None:
            raise account_not_found(account_id)
        return account

    async def list_entries(self, account_id: AccountId, page: Page) -> tuple[list[Entry], str]:
        """A page of the ledger, newest first, and the next page's token ('' at the end)."""
        before = int(page.after[0]) if page.after else _NEWEST
        async with reading(self._database) as connection:
            if await store.read_account(connection, account_id) is None:
                raise account_not_found(account_id)
            entries = await store.read_entries(
                connection, account_id, before=before, size=page.size + 1
            )
        if len(entries) <= page.size:
            return entries, ""
        entries = entries[: page.size]
        return entries, page.token([entries[-1].sequence])

    async def _decide(
        self, connection: AsyncConnection, commands: Sequence[Command], *, patient: bool
    ) -> list[Any]:
        """One batch: rows, then answers, then the model, then everything saved."""
        lock = patient or any(waits_for_rows(command) for command in commands)
        loaded = await _load(connection, commands, lock=lock, patient=patient)
        book = await self._answers.open(
            connection, [key for command in commands for key in _keys(command)]
        )
        batch = _Batch(loaded, book)
        await batch.find_deductions(connection, commands)
        outcomes: list[Any] = [batch.outcome(command) for command in commands]

        changed = [account for account in loaded.accounts.values() if account.entries]
        saved = await store.save(connection, changed)
        for position, command in enumerate(commands):
            # The rows of a charge were not locked: one that moved takes its commands with it.
            account_id = None if isinstance(command, RefundDeduction) else command.account_id
            if account_id in batch.changed and account_id not in saved:
                outcomes[position] = Moved()
                book.forget([command.key])
        await store.add_entries(
            connection,
            [entry for account in changed if account.id in saved for entry in account.entries],
        )
        await book.save(connection)
        return outcomes


async def _load(
    connection: AsyncConnection, commands: Sequence[Command], *, lock: bool, patient: bool
) -> store.Loaded:
    wanted = list({_wanted(command) for command in commands})
    loaded = await store.load(connection, wanted, lock=lock, patient=patient)
    missing = {
        command.account_id
        for command in commands
        if isinstance(command, ChargeBalance)
        and command.account_id not in loaded.accounts
        and command.account_id not in loaded.held
    }
    if missing:
        await store.open_accounts(connection, missing)
        loaded = await store.load(connection, wanted, lock=lock, patient=patient)
    return loaded


def _wanted(command: Command) -> tuple[str, str | None]:
    # A refund does not know its deduction's currency: it takes all accounts of the user, and so
    # waits for any deduction that is in flight.
    if isinstance(command, RefundDeduction):
        return command.user_id, None
    return command.account_id


def _keys(command: Command) -> list[Any]:
    if isinstance(command, RefundDeduction):
        return [command.key, command.deduct_key]
    return [command.key]


def _translate(constraint: str, command: Command) -> Refusal | None:
    """A violated constraint in the words of the contract."""
    if constraint == REQUEST_ONCE:
        # The answer is gone after its 30 days; that it happened is known for good.
        return RequestIdReused(request_id=command.request_id)
    return None


class _Batch:
    """The commands of one transaction against the accounts loaded for them."""

    def __init__(self, loaded: store.Loaded, book: AnswerBook) -> None:
        self._loaded = loaded
        self._book = book
        self._deductions: dict[store.Deduction, Entry] = {}
        self._refunds: dict[store.Deduction, Entry] = {}
        self.changed: set[AccountId] = set()

    async def find_deductions(
        self, connection: AsyncConnection, commands: Sequence[Command]
    ) -> None:
        """Look up what the batch's refunds are about. Their accounts are locked by now."""
        named = sorted(
            {
                (command.user_id, command.deduct_request_id)
                for command in commands
                if isinstance(command, RefundDeduction)
            }
        )
        if named:
            self._deductions, self._refunds = await store.find_deductions(connection, named)

    def outcome(self, command: Command) -> Posted | Refusal | Held:
        """Decide one command, in order of arrival."""
        held = self._held(command)
        if held is not None:
            return Held(held)
        try:
            return self._replay(command) or self._post(command)
        except Refusal as refusal:
            return refusal

    def _held(self, command: Command) -> AccountId | None:
        if not isinstance(command, RefundDeduction):
            return command.account_id if command.account_id in self._loaded.held else None
        ids = self._loaded.of_user(command.user_id) if self._loaded.held else []
        return next((id_ for id_ in ids if id_ in self._loaded.held), None)

    def _replay(self, command: Command) -> Posted | None:
        answer = self._book.get(command.key)
        if answer is None:
            return None
        if answer.cancelled:
            assert isinstance(command, DeductBalance)
            raise deduction_cancelled(command)
        return Posted(_BODY.validate_json(answer.body_for(command)), replayed=True)

    def _post(self, command: Command) -> Posted:
        if isinstance(command, RefundDeduction):
            posted = self._refund(command)
        else:
            posted = Posted(self._change(command), replayed=False)
        self._book.answer(command, _BODY.dump_json(posted.entry).decode())
        return posted

    def _change(self, command: ChargeBalance | DeductBalance) -> Entry:
        account = self._loaded.accounts.get(command.account_id)
        if isinstance(command, ChargeBalance):
            assert account is not None, "a charge opens its account"
            entry = account.charge(command, new_id(), self._loaded.now)
        else:
            if account is None or not account.exists:
                raise account_not_found(command.account_id)
            entry = account.deduct(command, new_id(), self._loaded.now)
            self._deductions[command.user_id, command.request_id] = entry
        self.changed.add(command.account_id)
        return entry

    def _refund(self, command: RefundDeduction) -> Posted:
        deduction_id = (command.user_id, command.deduct_request_id)
        before = self._book.get(command.deduct_key)
        refunded = self._refunds.get(deduction_id)
        if refunded is not None or (before is not None and before.cancelled):
            return Posted(refunded, replayed=True)
        deduction = self._deductions.get(deduction_id)
        account = self._loaded.accounts.get(deduction.account_id) if deduction else None
        if deduction is not None and account is None:
            # Its account came into being after the rows were locked: go round and lock it too.
            raise Overtaken
        # In the transaction of the undo, or alone: the deduction, late or repeated, is refused.
        self._book.cancel(command.deduct_key)
        if deduction is None or account is None:
            return Posted(None, replayed=False)
        entry = account.refund(command, deduction, new_id(), self._loaded.now)
        self._refunds[deduction_id] = entry
        self.changed.add(account.id)
        return Posted(entry, replayed=False)
