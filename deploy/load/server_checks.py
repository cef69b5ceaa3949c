"""Checks of what k6 cannot see: the gateway's record, the audit, the memory of the replicas."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from deploy.local.state import run_audit

MEMORY_MIB_MAX: Final = 512
"""The memory of a replica in the report that this test is compared with (R18)."""
LISTED_MAX: Final = 5
# Of a key: confirm calls, cancel calls, whether it was charged.
CHARGED: Final = (1, 0, 1)
REFUNDED: Final = (1, 1, 1)

# All calls of this run's keys, which are recognized by their prefix.
CALLS: Final = """
SELECT payment_key, sum(operation = 'confirm') AS confirms, sum(operation = 'cancel') AS cancels,
       (SELECT approved_at IS NOT NULL FROM payments WHERE payments.payment_key = calls.payment_key)
           AS charged
  FROM calls
 WHERE substr(payment_key, 1, length(:prefix)) = :prefix
 GROUP BY payment_key
"""


@dataclass(frozen=True, slots=True)
class Finding:
    """A line of the result: what must hold, the figure, and whether it holds."""

    what: str
    figure: str
    holds: bool
    skipped: bool = False
    """It could not be checked; the result does not depend on it."""


def charged_once(record: Path, prefix: str, keys: int, *, refunds_allowed: bool = False) -> Finding:
    """Whether the gateway got one call and made one charge for each of that many keys.

    ``refunds_allowed``: further keys may have been charged once and refunded once.
    """
    what = f"the gateway was called once for each {prefix.partition('_')[0]}_ key"
    try:
        with closing(sqlite3.connect(f"{record.absolute().as_uri()}?mode=ro", uri=True)) as found:
            rows = found.execute(CALLS, {"prefix": prefix}).fetchall()
    except sqlite3.Error as error:
        return Finding(what, f"the record {record} cannot be read: {error}", holds=False)
    wrong = [
        f"{key}: {confirms} confirms, {cancels} cancels{'' if charged else ', not charged'}"
        for key, confirms, cancels, charged in rows
        if (confirms, cancels, charged)
        not in ([CHARGED, REFUNDED] if refunds_allowed else [CHARGED])
    ]
    charged_keys = sum(tuple(row[1:]) == CHARGED for row in rows)
    figure = f"{charged_keys:,} keys of {keys:,}, {sum(row[1] for row in rows):,} calls"
    if wrong:
        figure += "; " + "; ".join(wrong[:LISTED_MAX])
    return Finding(what, figure, holds=not wrong and charged_keys == keys)


def books_balance(data_dir: Path) -> Finding:
    """Whether the audit finds that every invariant holds; if not, the figure is its report."""
    code, lines = run_audit(data_dir)
    holds = code == 0
    figure = "every invariant holds" if holds else "\n" + "\n".join(lines)
    return Finding("the audit: the books balance", figure, holds=holds)


def memory_within_limit(pids: Iterable[int]) -> Finding:
    """Whether the peak memory of every replica is at most MEMORY_MIB_MAX."""
    highest = max(_peak_mib(pid) for pid in pids)
    return Finding(
        f"no replica took more than {MEMORY_MIB_MAX} MiB",
        f"{highest} MiB the largest, at its peak",
        holds=highest <= MEMORY_MIB_MAX,
    )


def _peak_mib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) // 1024
    return 0
