"""Child processes that stop in order, and die with this process however it ends."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import importlib.util
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Self

from deploy.local.errors import RunnerError

HOST: Final = "127.0.0.1"
POLL_S: Final = 0.02
KILL_WAIT_S: Final = 10.0
PORT_WAIT_S: Final = 1.0
FREE_PORT_ATTEMPTS: Final = 5
PORT_IN_USE: Final = "Address already in use"
LOG_BYTES_MAX: Final = 16 << 20
LOG_READ_BYTES_MAX: Final = 64 << 10


class Startable(abc.ABC):
    """Something that runs while a ``with`` block does. Enter it in the main thread (see Child)."""

    @abc.abstractmethod
    def start(self) -> None:
        """Return when it is ready. Raises RunnerError; ``stop`` must follow in any case."""

    @abc.abstractmethod
    def stop(self) -> None:
        """Return when it has stopped. Does nothing if it does not run."""

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


@dataclasses.dataclass(frozen=True)
class User:
    """The user whom a child runs as."""

    uid: int
    gid: int


def current_user() -> User:
    return User(os.geteuid(), os.getegid())


def _launch(user: User, death_signal: signal.Signals) -> list[str]:
    """The program that replaces itself by a child, which then dies with this process.

    If this is root and the user is not, the child keeps CAP_DAC_OVERRIDE and nothing else of root's
    rights: PostgreSQL refuses to run as root, while the project may lie in a directory that only
    root may enter. The secure bit is needed as well: without it, access(2) ignores the capability,
    and initdb finds its own programs through access(2).
    """
    setpriv = ["setpriv", f"--pdeathsig={death_signal.name.removeprefix('SIG')}"]
    if user != current_user():
        setpriv += [f"--reuid={user.uid}", f"--regid={user.gid}", "--clear-groups"]
        setpriv += ["--securebits=+no_setuid_fixup"]
        setpriv += [f"--{kept}-caps=-all,+dac_override" for kept in ("inh", "ambient")]
    # This process may have died before the death signal was set.
    script = f'test $PPID = {os.getpid()} && exec "$@"'
    return [*setpriv, "--", "/bin/sh", "-c", script, "child"]


def plain_path() -> dict[str, str]:
    """An environment with nothing but PATH and the C locale."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}


def package_directory(name: str) -> Path:
    """Where the files of an installed package are. Raises RunnerError if there is none."""
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        raise RunnerError(f"the package {name} is not installed: run `make clean setup`")
    return Path(found.origin).parent


class Child:
    """A running program. Start it from a thread that lives as long as the child.

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
        with _open_log(log_file) as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                [*_launch(user or current_user(), death_signal), *map(str, command)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(env),
                cwd=cwd,
                # Ctrl-C reaches this process only, which stops the children in order.
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def exit_code(self) -> int | None:
        """None while it runs; if negative, the signal that ended it."""
        return self._process.poll()

    def wait(self, timeout_s: float | None) -> int | None:
        """The exit code, or None if it still runs after that time."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(timeout_s)
        return None

    def send(self, number: signal.Signals) -> None:
        """Send the signal, unless it has ended."""
        self._process.send_signal(number)

    def stop(self, number: signal.Signals = signal.SIGTERM, *, grace_s: float = 10.0) -> None:
        """Send the signal, and SIGKILL if it still runs after ``grace_s``."""
        self.send(number)
        if self.wait(grace_s) is None:
            self._process.kill()
            self._process.wait(KILL_WAIT_S)

    def log_text(self) -> str:
        """What this child has written, at most the last 64 KiB."""
        with self.log_file.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(self._log_start, size - LOG_READ_BYTES_MAX))
            return log.read().decode(errors="replace")

    def log_tail(self, lines: int = 15) -> str:
        return "\n".join(self.log_text().rstrip().splitlines()[-lines:])

    def failure(self, what: str) -> RunnerError:
        """The error for a child that did not do its work, with the end of its log."""
        return RunnerError(f"{self.name} {what}; {self.log_file} ends:\n{self.log_tail()}")


def stop_all(children: Sequence[Child], *, grace_s: float) -> None:
    """Stop all at the same time; kill those that still run after ``grace_s``."""
    for child in children:
        child.send(signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    for child in children:
        if child.wait(max(0.0, deadline - time.monotonic())) is None:
            child.stop(signal.SIGKILL)


def _open_log(path: Path) -> BinaryIO:
    """Open a log for appending. Only its owner can read it; one that is too large is replaced."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size > LOG_BYTES_MAX:
            path.replace(f"{path}.1")
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab")


# -- ports -----------------------------------------------------------------------------------------


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.create_server((HOST, 0)) as probe:
        return int(probe.getsockname()[1])


def require_free_port(port: int, purpose: str, *, option: str = "--base-port 60050") -> None:
    """Raise RunnerError if another program holds the port for longer than a moment.

    ``option`` chooses another port; the message names it.
    """
    hold_port(port, purpose, option=option).close()


def hold_port(port: int, purpose: str, *, option: str = "--base-port 60050") -> socket.socket:
    """As ``require_free_port``, and keep the port from connections until the socket is closed.

    The kernel may give a connection any port above 32768 as its local one, and a server that is
    started later cannot listen there. It gives none that is bound. A server that sets SO_REUSEADDR,
    as all of these do, can listen on a port that is bound without listening.
    """
    deadline = time.monotonic() + PORT_WAIT_S
    while True:
        held = socket.socket()
        try:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.bind((HOST, port))
        except OSError as error:
            held.close()
            # It may be the local port of a short connection.
            if time.monotonic() > deadline:
                raise RunnerError(
                    f"port {port} on {HOST}, wanted for {purpose}, is taken: stop what listens "
                    f"there, or use other ports with {option} (with make: ARGS='{option}')"
                ) from error
            time.sleep(POLL_S)
        else:
            return held


class LocalServer(Startable):
    """A server on 127.0.0.1. Port 0 means a free port, known after ``start``."""

    start_limit_s = 30.0
    stop_limit_s = 5.0
    port_option = "--base-port 60050"
    """What chooses another port, for the message that it is taken."""
    stop_signal = signal.SIGTERM
    kill_signal = signal.SIGKILL

    def __init__(self, name: str, port: int, log_file: Path) -> None:
        self.port = port
        self.log_file = log_file
        self.child: Child | None = None
        self.name = name

    @abc.abstractmethod
    def _spawn(self) -> Child:
        """Start the program on ``port``."""

    @abc.abstractmethod
    def _is_ready(self, child: Child) -> bool:
        """Whether this child, and no other program on its port, answers."""

    def start(self) -> None:
        """Launch it on its port, or on one free port after another if it has none.

        Another process may take a free port before the server listens on it.
        """
        any_port = self.port == 0
        if not any_port:
            require_free_port(self.port, self.name, option=self.port_option)
        for _ in range(FREE_PORT_ATTEMPTS):
            self.port = free_port() if any_port else self.port
            child = self._launch()
            if child.exit_code() is None:
                return
            if not any_port or PORT_IN_USE not in child.log_text():
                break
        raise child.failure("did not start")

    def stop(self) -> None:
        if self.child is not None:
            self.child.stop(self.stop_signal, grace_s=self.stop_limit_s)
            self.child = None

    def _launch(self) -> Child:
        """Start it on ``port``; it runs if it is ready, and has been stopped if it is not."""
        self.child = child = self._spawn()
        deadline = time.monotonic() + self.start_limit_s
        while not self._is_ready(child):
            if child.exit_code() is not None or time.monotonic() > deadline:
                child.stop(self.kill_signal)
                break
            time.sleep(POLL_S)
        return child
