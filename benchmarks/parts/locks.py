"""Key locks against their own scripts, the least that a handoff can cost, and other libraries.

The stack lends its Valkey and PostgreSQL; its services stay idle.
"""

from __future__ import annotations

from typing import Final

from benchmarks.lock_subjects import Floor, Handoffs, Uncontended
from benchmarks.measure import Place
from benchmarks.stacks import admin_url
from benchmarks.subjects import Subject
from deploy.local.stack import Stack

LIBRARIES: Final = {
    "handoff": ("KeyLocks, handoff", "tally"),
    "redis-py": ("redis-py's Lock", "redis-py"),
    "redis-py-1ms": ("redis-py's Lock, sleep 1 ms", "redis-py-1ms"),
    "python-redis-lock": ("python-redis-lock", "python-redis-lock"),
    "pottery": ("pottery's AIORedlock", "pottery"),
}
"""By the name that the rows use: the name in the report, and that of ``lock_worker``."""


def place(stack: Stack) -> Place:
    """The subjects on the stack's Valkey."""
    url = stack.backends.redis_url
    subjects: dict[str, Subject] = {
        "locks-free": Uncontended(url, raw=False),
        "scripts": Uncontended(url, raw=True),
        "hop": Floor(url),
        "pings": Handoffs("PINGs during handoffs", "tally", url, pings=True),
    }
    for name, (shown, library) in LIBRARIES.items():
        subjects[name] = Handoffs(shown, library, url)
    return Place(subjects, admin_url(stack), stack.plan.data_dir)
