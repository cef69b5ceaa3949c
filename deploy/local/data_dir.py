"""The data directory: one runner at a time, and the processes that an earlier one left behind.

lock            held while a runner or an audit uses the directory
processes.json  the runner's children: pid and start time
state.json      the addresses of the databases, for the audit
postgres/ valkey/ logs/ gateway.sqlite3 gateway.key
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

from deploy.local.errors import RunnerError
from deploy.local.postgres_files import PostgresFiles
from deploy.local.processes import POLL_S, Child
from deploy.local.secret_files import read_json, write_json

SURVIVOR_WAIT_S: Final = 10.0


class DirectoryInUse(RunnerError):  # noqa: N818 - a fact, not a fault of this program
    """Another runner uses the data directory."""


@contextlib.contextmanager
def locked(data_dir: Path) -> Iterator[None]:
    """Create the directory if needed and lock it. The kernel releases it if this process dies."""
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


def stop_survivors(data_dir: Path) -> int:
    """Stop what an earlier runner left behind in a locked directory; the number of children."""
    stopped = Registry(data_dir).kill_survivors()
    if (data_dir / "postgres").is_dir():
        files = PostgresFiles((data_dir / "postgres").resolve(), data_dir / "logs/postgres.log")
        files.stop_survivor()
    return stopped


class Registry:
    """The children of the runner that uses a directory, recorded for the next runner."""

    def __init__(self, data_dir: Path) -> None:
        self._file = data_dir / "processes.json"
        self._start_times: dict[str, str] = {}

    def add(self, child: Child) -> None:
        started = start_time(child.pid)
        if started is not None:
            self._start_times[str(child.pid)] = started
            write_json(self._file, self._start_times)

    def clear(self) -> None:
        """Call it when all children have ended."""
        self._start_times = {}
        self._file.unlink(missing_ok=True)

    def kill_survivors(self) -> int:
        """Kill the children of an earlier runner, wait for their end, and return their number.

        The pid is not enough, since another program may have it by now: the start time of the
        process must be the recorded one.
        """
        recorded = read_json(self._file) or {}
        survivors = [pid for pid, started in recorded.items() if _runs(pid, started)]
        for pid in survivors:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        deadline = time.monotonic() + SURVIVOR_WAIT_S
        while running := [pid for pid in survivors if _runs(pid, recorded[pid])]:
            if time.monotonic() > deadline:
                raise RunnerError(f"process {running[0]} of an earlier run cannot be ended")
            time.sleep(POLL_S)
        self.clear()
        return len(survivors)


def _runs(pid: str, started: object) -> bool:
    return pid.isdigit() and start_time(int(pid)) == started


def start_time(pid: int) -> str | None:
    """When that process started, in a form that no other process of its pid has; None if ended."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:  # noqa: PTH123
            # The name in parentheses may contain blanks and parentheses itself.
            fields = file.read().rpartition(")")[2].split()
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:  # noqa: PTH123
            boot = file.read().strip()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # A zombie holds no port and no file.
    return None if fields[0] in "ZX" else f"{boot}:{fields[19]}"
