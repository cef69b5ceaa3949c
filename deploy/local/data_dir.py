"""The data directory of a stack, used by one runner at a time.

lock            held while a runner or an audit uses the directory
state.json      the addresses of the databases, for the audit
postgres/ valkey/ logs/ monitoring/ audit/ gateway.sqlite3 gateway.key
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from deploy.local.errors import RunnerError


class DirectoryInUse(RunnerError):  # noqa: N818 - a fact, not a fault of this program
    """Another runner uses the data directory."""


@contextlib.contextmanager
def locked(data_dir: Path) -> Iterator[None]:
    """Create the directory if needed and lock it. The kernel releases it if this process dies."""
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (data_dir / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            raise DirectoryInUse(
                f"data directory {data_dir}: in use by another runner (pid {lock.read().strip()})"
            ) from error
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield
