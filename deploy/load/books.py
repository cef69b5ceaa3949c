"""What k6 cannot see: the gateway's record, the books of all services, the replicas' memory."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from deploy.local.plan import PROJECT, plain_environment

AUDIT_LIMIT_S: Final = 120.0
MEMORY_MIB_MAX: Final = 512
"""What a replica of the report had (R18)."""
NAMED_MAX: Final = 5
# Of a key: confirm calls, cancel calls, whether it was charged.
KEPT: Final = (1, 0, 1)
PUT_BACK: Final = (1, 1, 1)

# Keys of this run, by their beginning, for which that is all that the gateway may have seen.
CALLS: Final = """
SELECT payment_key, sum(operation = 'confirm') AS confirms, sum(operation = 'cancel') AS cancels,
       (SELECT approved_at IS NOT NULL FROM payments WHERE payments.payment_key = calls.payment_key)
           AS charged
  FROM calls
 WHERE substr(payment_key, 1, length(:beginning)) = :beginning
 GROUP BY payment_key
"""


@dataclass(frozen=True, slots=True)
class Finding:
    """A line of the result: what should be, what is, and whether that will do."""

    what: str
    figure: str
    holds: bool
    looked: bool = True
    """False: nobody looked, so that nothing is known; it holds nobody up."""


def charged_once(
    record: Path, beginning: str, keys: int, *, may_be_put_back: bool = False
) -> Finding:
    """Whether the gateway was called once, and charged once, for each of so many keys.

    ``may_be_put_back``: others beside them may have been charged once and paid back once.
    """
    what = f"the gateway was called once for each {beginning.partition('_')[0]}_ key"
    try:
        with closing(sqlite3.connect(f"{record.absolute().as_uri()}?mode=ro", uri=True)) as found:
            rows = found.execute(CALLS, {"beginning": beginning}).fetchall()
    except sqlite3.Error as error:
        return Finding(what, f"the record {record} cannot be read: {error}", holds=False)
    wrong = [
        f"{key}: {confirms} confirms, {cancels} cancels{'' if charged else ', not charged'}"
        for key, confirms, cancels, charged in rows
        if (confirms, cancels, charged) not in ([KEPT, PUT_BACK] if may_be_put_back else [KEPT])
    ]
    kept = sum(tuple(row[1:]) == KEPT for row in rows)
    figure = f"{kept:,} keys of {keys:,}, {sum(row[1] for row in rows):,} calls"
    if wrong:
        figure += "; " + "; ".join(wrong[:NAMED_MAX])
    return Finding(what, figure, holds=not wrong and kept == keys)


def books_balance(data_dir: Path) -> Finding:
    """Whether the audit finds every invariant held. Its report is the figure when it does not."""
    done = subprocess.run(
        [sys.executable, "-m", "deploy.audit", "--data-dir", data_dir],
        cwd=PROJECT,
        env=plain_environment(),
        capture_output=True,
        text=True,
        timeout=AUDIT_LIMIT_S,
        check=False,
    )
    lines = (done.stdout + done.stderr).rstrip().splitlines()
    held = done.returncode == 0
    figure = f"{len(lines) - 1} invariants hold" if held else "\n" + "\n".join(lines)
    return Finding("the audit: the books balance", figure, holds=held)


def memory_kept(pids: Iterable[int]) -> Finding:
    """Whether no replica ever had more memory in use than a replica of the report had."""
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
