"""The data directory: one runner at a time, and what an earlier one has left behind.

lock            held while a runner or an audit works here
processes.json  the runner's children: pid and start time, so that survivors can be told
state.json      where the databases are, for the audit
postgres/ valkey/ logs/ gateway.sqlite3 gateway.key
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import time
from typing import IO, TYPE_CHECKING

from deploy.local.errors import RunnerError
from deploy.local.processes import POLL_S, Child
from deploy.local.secret_files import read_json, write_json

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SURVIVOR_WAIT_S = 10.0


class DirectoryInUse(RunnerError):  # noqa: N818 - a fact, not a fault of this program
    """Another runner works on the data directory."""


@contextlib.contextmanager
def locked(data_dir: Path) -> Iterator[None]:
    """Hold the directory, making it if need be. The kernel frees it however this process ends."""
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (data_dir / "lock").open("a+")
    except (FileExistsError, NotADirectoryError) as error:
        raise RunnerError(f"data directory {data_dir}: it is not a directory") from error
    except OSError as error:
        raise RunnerError(f"data directory {data_dir}: {error.strerror}") from error
    with lock:
        _lock(lock, data_dir)
        yield


def _lock(lock: IO[str], data_dir: Path) -> None:
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


class Registry:
    """The children of the runner that uses a directory, on record for the next one."""

    def __init__(self, data_dir: Path) -> None:
        self._file = data_dir / "processes.json"
        self._started: dict[str, str] = {}

    def add(self, child: Child) -> None:
        started = start_time(child.pid)
        if started is not None:
            self._started[str(child.pid)] = started
            write_json(self._file, self._started)

    def forget(self) -> None:
        """Call when all children have ended."""
        self._started = {}
        self._file.unlink(missing_ok=True)

    def clear_survivors(self) -> int:
        """Kill those that an earlier runner left behind, wait for their end, and count them.

        A pid alone proves nothing, for it may belong to another program by now: the time at
        which its process began must be the same too.
        """
        recorded = read_json(self._file) or {}
        survivors = [int(pid) for pid, started in recorded.items() if _runs(pid, started)]
        for pid in survivors:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + SURVIVOR_WAIT_S
        for pid in survivors:
            while _runs(str(pid), recorded[str(pid)]):
                if time.monotonic() > deadline:
                    raise RunnerError(f"process {pid} of an earlier run cannot be ended")
                time.sleep(POLL_S)
        self.forget()
        return len(survivors)


def _runs(pid: str, started: object) -> bool:
    return pid.isdigit() and start_time(int(pid)) == started


def start_time(pid: int) -> str | None:
    """Return when that process began, as no other process of its pid can have; None if ended."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:  # noqa: PTH123
            # The name in parentheses may hold blanks and parentheses itself.
            fields = file.read().rpartition(")")[2].split()
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:  # noqa: PTH123
            boot = file.read().strip()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # A zombie holds no port and no file.
    return None if fields[0] in "ZX" else f"{boot}:{fields[19]}"
