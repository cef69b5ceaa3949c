"""A real PgBouncer before the tests' PostgreSQL server."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from sqlalchemy.engine import make_url

from deploy.local.errors import RunnerError
from deploy.local.postgres import PostgresServer
from deploy.local.postgres_files import server_user
from deploy.local.processes import HOST, Child, LocalServer, plain_path
from deploy.local.secret_files import write_secret

SERVER_SESSIONS: Final = 6
"""Sessions of the server for each database and role: fewer than a replica's pools hold."""


def binary() -> Path:
    """PgBouncer's program: the variable PGBOUNCER, or the one that is installed.

    Raises RunnerError if there is none.
    """
    found = shutil.which(os.environ.get("PGBOUNCER", "pgbouncer"), path="/usr/sbin:/usr/bin:/bin")
    if found is None:
        raise RunnerError("there is no pgbouncer: install it, or name it in PGBOUNCER")
    return Path(found)


class PgBouncer(LocalServer):
    """One PgBouncer in transaction mode, with the server's passwords."""

    def __init__(self, data_dir: Path, server: PostgresServer, settings: Mapping[str, str]) -> None:
        super().__init__("PgBouncer", 0, data_dir / "pgbouncer.log")
        self._data_dir = data_dir
        self._server = server
        self._settings = settings

    def url(self, url: str) -> str:
        """The URL of a database by way of PgBouncer."""
        return make_url(url).set(port=self.port).render_as_string(hide_password=False)

    def restart(self) -> None:
        """Let it crash, and start again at its address: every session of its clients is lost."""
        assert self.child is not None
        self.child.stop(self.kill_signal)
        self.start()

    def _spawn(self) -> Child:
        config, users = self._data_dir / "pgbouncer.ini", self._data_dir / "users.txt"
        passwords = self._server.files.passwords.items()
        write_secret(users, "".join(f'"{role}" "{password}"\n' for role, password in passwords))
        settings = {
            "listen_addr": HOST,
            "listen_port": str(self.port),
            "unix_socket_dir": "",
            "auth_type": "scram-sha-256",
            "auth_file": str(users),
            "pool_mode": "transaction",
            "default_pool_size": str(SERVER_SESSIONS),
            "max_client_conn": "1000",
            **self._settings,
        }
        lines = [f"{name} = {value}" for name, value in settings.items()]
        database = f"[databases]\n* = host={HOST} port={self._server.port}\n"
        write_secret(config, database + "[pgbouncer]\n" + "\n".join(lines) + "\n")
        user = server_user()
        for path in (config, users):
            os.chown(path, user.uid, user.gid)
        return Child(
            "pgbouncer",
            [binary(), "-q", config],
            log_file=self.log_file,
            env=plain_path(),
            user=user,
        )

    def _is_ready(self, child: Child) -> bool:
        try:
            socket.create_connection((HOST, self.port), timeout=1.0).close()
        except OSError:
            return False
        return child.exit_code() is None
