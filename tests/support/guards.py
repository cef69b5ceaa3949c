"""Guards that a control removes from outside, the same in every service."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from common.db.idempotency import IdempotencyRecords, IdempotencyStore
from common.db.row_locks import Locked, RowLocks
from common.db.statements import Connection
from common.db.writes import Write, execute_together
from common.request_key import Result


def forget_row_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read rows where they should be locked: the second line of a strategy with row locks."""

    async def read(
        self: RowLocks[Any], connection: Any, keys: Any, *, wait_for_locks: bool, also: Any = None
    ) -> Locked[Any, Any]:
        return await self.read(connection, keys)

    monkeypatch.setattr(RowLocks, "lock", read)


def forget_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Record no response: a repeated request is not recognized by its record."""
    monkeypatch.setattr(IdempotencyRecords, "answer", lambda _, __, value, ___: Result(value))


def forget_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write no idempotency record, and find none, not even that of a request in the same batch."""
    monkeypatch.setattr(IdempotencyRecords, "replay", lambda *_: None)

    async def save_rows(
        _self: IdempotencyStore,
        connection: Connection,
        _records: IdempotencyRecords,
        rows: Sequence[Write] = (),
    ) -> None:
        await execute_together(connection, rows)

    monkeypatch.setattr(IdempotencyStore, "save", save_rows)
