"""The checks after each fault see what is wrong; every cell of the matrix is in one batch."""

from __future__ import annotations

import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from deploy.local.gateway.ledger import Ledger
from tests.faults.books import broken_promises, wrong_charges
from tests.faults.load import KINDS, Replies
from tests.faults.matrix import Results, batches
from tests.faults.places import RECOVERY, cells

BY_ALL = next(kind for kind in KINDS if kind.name == "by all")
CANCELS = next(kind for kind in KINDS if kind.name == "cancelled")


@pytest.mark.parametrize(
    ("replies", "state", "kept"),
    [
        (Replies(BY_ALL, "o", paid="PAID"), "PAID", True),
        (Replies(BY_ALL, "o", paid="PAID"), "EXPIRED", False),
        (Replies(BY_ALL, "o", paid="PAYMENT_DECLINED"), "CANCELLED", True),
        (Replies(BY_ALL, "o", paid="PAYMENT_DECLINED"), "PAID", False),
        (Replies(CANCELS, "o", paid="PAID", cancelled="CANCELLED"), "CANCELLED", True),
        (Replies(CANCELS, "o", paid="PAID", cancelled="CANCELLED"), "PAID", False),
        (Replies(CANCELS, "o", paid="PAID"), "CANCELLED", True),
        (Replies(BY_ALL, "o"), "PAID", True),
        (Replies(BY_ALL, "o", paid="PAID"), "", False),
    ],
)
def test_a_broken_promise_to_a_customer_is_seen(replies: Replies, state: str, kept: bool) -> None:
    states = {"o": (state, 0)} if state else {}
    assert (not list(broken_promises(states, [replies]))) == kept


@pytest.mark.parametrize(
    ("charges", "states", "outside", "right"),
    [
        ([("k", "o", 500, 500)], {"o": ("PAID", 500)}, set(), True),
        ([("k", "o", 500, 0)], {"o": ("CANCELLED", 500)}, set(), True),
        ([("k", "o", 500, 500)], {"o": ("CANCELLED", 500)}, {"k"}, True),
        ([], {"o": ("PAID", 0)}, set(), True),
        ([("k", "o", 500, 500)], {"o": ("CANCELLED", 500)}, set(), False),
        ([("k", "o", 500, 500)], {"o": ("PAID", 400)}, set(), False),
        ([("k", "o", 500, 500)], {}, set(), False),
        ([("k", "o", 500, 500), ("l", "o", 500, 500)], {"o": ("PAID", 500)}, set(), False),
        ([("k", "o", 500, 0)], {"o": ("PAID", 500)}, set(), False),
    ],
)
def test_a_charge_of_no_order_or_of_two_is_seen(
    charges: list[tuple[str, str, int, int]],
    states: dict[str, tuple[str, int]],
    outside: set[str],
    right: bool,
    tmp_path: Path,
) -> None:
    record = tmp_path / "gateway.sqlite3"
    Ledger(record).close()
    with closing(sqlite3.connect(record)) as database, database:
        database.executemany(
            "INSERT INTO payments VALUES (?1, ?2, 'DONE', 'KRW', ?3, ?4, ?1, '', '', NULL)",
            charges,
        )
    assert (not list(wrong_charges(record, states, outside))) == right


def test_every_cell_is_in_exactly_one_batch() -> None:
    counted = Counter(cell for batch in batches(cells()) for cell in batch)
    assert counted == Counter(cells())
    assert set(counted.values()) == {1}


def test_cells_of_a_batch_do_not_hide_each_other() -> None:
    for batch in batches(cells()):
        assert len({cell.name for cell in batch}) == len(batch)
        assert len({cell.phase for cell in batch}) == 1
        interruptions = {cell.interruption for cell in batch}
        assert len(interruptions) == 1
        assert (batch[0].phase == RECOVERY) == any(interruptions)


def test_a_run_with_a_failpoint_that_never_fired_is_incomplete() -> None:
    cell = next(cells())
    assert Results(held={cell}).complete
    assert not Results(held={cell}, never_fired={cell}).complete
    assert not Results(held={cell}, not_run={cell}).complete
    assert not Results(broken={cell: ["it differs"]}).complete
    assert not Results(unlisted={"lane.new.Command.before"}).complete
