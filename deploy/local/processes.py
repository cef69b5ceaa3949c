"""Child processes that die with their parent, are stopped in order, and can be found again.

Three things end a child: `Child.stop`, the death of this process (see launcher.py), and, should
both have failed, the next run on the same data directory, which reads the registry.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from deploy.local.errors import RunnerError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

LAUNCHER = Path(__file__).with_name("launcher.py")
HOST = "127.0.0.1"
POLL_S = 0.02
KILL_WAIT_S = 10.0
PORT_WAIT_S = 1.0
LOG_BYTES_MAX = 16 << 20


@dataclasses.dataclass(frozen=True)
class User:
    """Whom a child runs as."""

    uid: int
    gid: int


def current_user() -> User:
    return User(os.geteuid(), os.getegid())


class Child:
    """A running program. Start it from a thread that lives as long as the child shall.

    Linux sends the death signal when the *thread* that started the child ends.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        log_file: Path,
        env: Mapping[str, str],
        cwd: Path | str = "/",
        user: User | None = None,
        death_signal: signal.Signals = signal.SIGKILL,
    ) -> None:
        self.name = name
        self.log_file = log_file
        user = user or current_user()
        launch = [sys.executable, "-I", "-S", LAUNCHER, os.getpid(), int(death_signal)]
        with open_log(log_file) as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                [str(part) for part in [*launch, user.uid, user.gid, *command]],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(env),
                cwd=cwd,
                # Ctrl-C is for the runner alone: it decides in which order the others go.
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def exit_code(self) -> int | None:
        """Return None while it runs; negative is the signal that ended it."""
        return self._process.poll()

    def wait(self, timeout_s: float) -> int | None:
        """Return the exit code, or None if it still runs after that time."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(timeout_s)
        return None

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def stop(self, number: signal.Signals = signal.SIGTERM, *, grace_s: float = 10.0) -> None:
        """Ask it to end, and kill it if it has not after grace_s. Harmless if it has ended."""
        if self.exit_code() is not None:
            return
        self.send(number)
        if self.wait(grace_s) is None:
            self._process.kill()
            self._process.wait(KILL_WAIT_S)

    def log_text(self) -> str:
        """Return what it has written since it began, at most the last 64 KiB."""
        with self.log_file.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(self._log_start, size - 65536))
            return log.read().decode(errors="replace")

    def log_tail(self, lines: int = 15) -> str:
        return "\n".join(self.log_text().rstrip().splitlines()[-lines:])


def stop_all(children: Sequence[Child], *, grace_s: float) -> None:
    """Ask all to end at once; kill what is left after grace_s."""
    for child in children:
        if child.exit_code() is None:
            child.send(signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    for child in children:
        if child.wait(max(0.0, deadline - time.monotonic())) is None:
            child.stop(signal.SIGKILL)


def open_log(path: Path) -> BinaryIO:
    """Open a log for appending that only its owner can read; a large one starts anew."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size > LOG_BYTES_MAX:
            path.replace(f"{path}.1")
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab")


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def require_free_port(port: int, purpose: str) -> None:
    """Refuse with one clear line when something else holds that port and keeps it."""
    deadline = time.monotonic() + PORT_WAIT_S
    while not _is_free(port, purpose):
        if time.monotonic() > deadline:
            raise RunnerError(f"port {port} on {HOST}, wanted for {purpose}, is taken")
        # A client's connection may hold it for a moment: the ports are in that range.
        time.sleep(POLL_S)


def _is_free(port: int, purpose: str) -> bool:
    with socket.socket() as probe:
        # As servers do: a port in TIME_WAIT from an earlier run is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise RunnerError(f"port {port}, for {purpose}: {error.strerror}") from error
    return True
