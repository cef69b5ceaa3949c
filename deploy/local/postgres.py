"""A real PostgreSQL server from a Python package, run as a child of this process.

The package's own `get_server` is not used: it opens the directories above it to everyone, trusts
every login, and its server survives the process that started it.
"""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path
from typing import Final

from deploy.local.errors import RunnerError
from deploy.local.postgres_files import SUPERUSER, PostgresFiles, binaries
from deploy.local.postgres_roles import (
    ServiceUrls,
    checked_name,
    database_sql,
    roles_of,
    service_sql,
    service_urls,
    url,
)
from deploy.local.processes import HOST, Child, LocalServer, plain_path

SQL_LIMIT_S: Final = 60.0
RETRY_S: Final = 0.2
SETTINGS: Final = {
    "listen_addresses": HOST,
    "unix_socket_directories": "",
    "max_connections": "300",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] %u@%d ",
    # The services' statements are short: to compile one costs more than to run it.
    "jit": "off",
}
# For tests only: their data need not survive a power failure.
NOT_DURABLE: Final = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


class PostgresServer(LocalServer):
    """One server. fsync and synchronous_commit are on unless ``durable`` is False."""

    start_limit_s = 60.0
    stop_limit_s = 30.0
    # PostgreSQL's fast shutdown; SIGTERM would wait for clients to disconnect.
    stop_signal = signal.SIGINT
    # Immediate shutdown: no backend survives, and the next start recovers from the WAL.
    kill_signal = signal.SIGQUIT

    def __init__(
        self, data_dir: Path, port: int = 0, log_file: Path | None = None, *, durable: bool = True
    ) -> None:
        data_dir = data_dir.resolve()
        super().__init__("PostgreSQL", port, log_file or data_dir / "postgres.log")
        self.files = PostgresFiles(data_dir, self.log_file)
        self._durable = durable

    @property
    def admin_url(self) -> str:
        """The superuser's address: to create databases and to look into them, not for services."""
        return url(SUPERUSER, self.files.passwords[SUPERUSER], f"{HOST}:{self.port}", "postgres")

    def start(self) -> None:
        """Create the data directory if there is none, and return once logins are accepted."""
        self.files.prepare(durable=self._durable)
        self.files.stop_survivor()
        super().start()

    def provision(self, service: str) -> ServiceUrls:
        """Create the service's database and its three roles, or correct them. Idempotent."""
        self.files.add_passwords(*roles_of(service))
        self.run_sql(service_sql(service, self.files.passwords))
        return self.urls(service)

    def urls(self, service: str, database: str | None = None) -> ServiceUrls:
        """The addresses of a provisioned service's database, or of a clone of it."""
        return service_urls(service, self.files.passwords, f"{HOST}:{self.port}", database)

    def create_database(
        self, name: str, *, service: str, template: str | None = None
    ) -> ServiceUrls:
        """Create another database of a provisioned service, as a clone of ``template`` if given.

        Nobody may be connected to the template meanwhile.
        """
        self.run_sql(database_sql(name, service, template))
        return self.urls(service, name)

    def drop_database(self, name: str) -> None:
        """Drop a database if it exists, and end the sessions in it."""
        self.run_sql(f'DROP DATABASE IF EXISTS "{checked_name(name)}" WITH (FORCE);\n')

    def run_sql(self, script: str, database: str = "postgres") -> str:
        """Run a script as superuser through psql; its unaligned output."""
        result = subprocess.run(
            [
                *(binaries() / "psql", "-X", "-q", "-A", "-t", "-w", "-v", "ON_ERROR_STOP=1"),
                *("-h", HOST, "-p", str(self.port), "-U", SUPERUSER, "-d", database, "-f", "-"),
            ],
            input=script,
            capture_output=True,
            text=True,
            check=False,
            timeout=SQL_LIMIT_S,
            env=plain_path() | {"PGPASSWORD": self.files.passwords[SUPERUSER]},
        )
        if result.returncode != 0:
            raise RunnerError(f"PostgreSQL refused: {result.stderr.strip()}")
        return result.stdout

    def _launch(self) -> Child:
        deadline = time.monotonic() + self.start_limit_s
        child = super()._launch()
        # The backends of a killed server end by themselves within moments.
        while "is still in use" in child.log_text() and time.monotonic() < deadline:
            time.sleep(RETRY_S)
            child = super()._launch()
        return child

    def _spawn(self) -> Child:
        settings = SETTINGS | {"port": str(self.port)} | ({} if self._durable else NOT_DURABLE)
        options = [f"--{name}={value}" for name, value in settings.items()]
        return Child(
            "postgres",
            [binaries() / "postgres", "-D", self.files.pgdata, *options],
            log_file=self.log_file,
            env=plain_path(),
            user=self.files.user,
            death_signal=self.kill_signal,
        )

    def _is_ready(self, child: Child) -> bool:
        return self.files.status(child.pid) == "ready"
