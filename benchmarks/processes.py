"""Processor time and memory of every process of the run, read from /proc."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
LOAD: Final = "load generator"
OTHER: Final = "other"
SERVERS: Final = {
    "balance_service": "balance",
    "coupon_service": "coupon",
    "order_service": "order",
    "payment_service": "payment",
    "benchmarks.servers.empty_server": "empty method",
    "benchmarks.servers.orm_server": "ORM server",
    "benchmarks.servers.dbos_orders": "DBOS",
}
"""Those that answer calls in one thread of Python each, by module (``python -m``)."""
NAMES: Final = SERVERS | {
    "benchmarks.servers.lock_worker": "waiters for locks",
    "deploy.local.gateway": "gateway simulator",
    "postgres": "PostgreSQL",
    "valkey-server": "Valkey",
    "pgbench": "pgbench",
}
"""By module or program. Replicas of a service count together."""


@dataclass(frozen=True, slots=True)
class _Process:
    pid: int
    parent: int
    own_s: float
    """Processor time, user and system."""
    ended_children_s: float
    rss_bytes: int


@dataclass(frozen=True, slots=True)
class Usage:
    """By process name: processor seconds since its start, and memory now."""

    cpu_s: dict[str, float]
    rss_bytes: dict[str, int]
    """The largest one of those with the name; of PostgreSQL, whose processes share memory, the
    largest process."""

    def since(self, before: Usage) -> dict[str, float]:
        """Processor seconds between two readings, of the processes that used any."""
        used = {name: s - before.cpu_s.get(name, 0.0) for name, s in self.cpu_s.items()}
        return {name: seconds for name, seconds in used.items() if seconds > 0}


def usage() -> Usage:
    """Read this process and its children, each with all of its descendants.

    A process that has ended counts for its parent: a backend of PostgreSQL for the postmaster.
    """
    processes = {process.pid: process for process in _processes()}
    children: dict[int, list[int]] = defaultdict(list)
    for process in processes.values():
        children[process.parent].append(process.pid)
    own = processes[os.getpid()]
    cpu_s: dict[str, float] = defaultdict(float, {LOAD: own.own_s})
    rss_bytes: dict[str, int] = defaultdict(int, {LOAD: own.rss_bytes})
    for pid in children[own.pid]:
        name = _name(pid)
        tree = [pid]
        for member in tree:
            tree += children[member]
        for process in (processes[member] for member in tree):
            cpu_s[name] += process.own_s + process.ended_children_s
            rss_bytes[name] = max(rss_bytes[name], process.rss_bytes)
    return Usage(dict(cpu_s), dict(rss_bytes))


def _processes() -> Iterator[_Process]:
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            text = (folder / "stat").read_text()
        except OSError:
            continue  # it has ended
        # The name, in parentheses, may contain blanks. Fields as in proc(5), from the third on.
        fields = text.rpartition(")")[2].split()
        parent, rss_pages = int(fields[1]), int(fields[21])
        user, system, children_user, children_system = (int(ticks) for ticks in fields[11:15])
        yield _Process(
            int(folder.name),
            parent,
            (user + system) / TICKS_PER_S,
            (children_user + children_system) / TICKS_PER_S,
            rss_pages * PAGE_BYTES,
        )


def _name(pid: int) -> str:
    folder = Path(f"/proc/{pid}")
    try:
        words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
        # Valkey and PostgreSQL change their command lines.
        program = (folder / "comm").read_text().strip()
    except OSError:
        return OTHER  # it has ended
    module = words[words.index("-m") + 1] if "-m" in words[:-1] else ""
    return NAMES.get(module) or NAMES.get(program, OTHER)
