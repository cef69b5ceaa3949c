"""Guards that a control takes away from outside, the same in every service."""

from __future__ import annotations

from typing import Any

import pytest

from common.db.row_locks import Locked, RowLocks


def forget_row_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read rows where they should be locked: the second line of a strategy with row locks."""

    async def read(
        self: RowLocks[Any], connection: Any, keys: Any, *, wait_for_locks: bool
    ) -> Locked[Any]:
        return await self.read(connection, keys)

    monkeypatch.setattr(RowLocks, "lock", read)
