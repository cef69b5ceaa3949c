"""A real PostgreSQL server out of a wheel, run as a child of this process.

Why not the wheel's own `get_server`: it opens ancestor directories to everyone, trusts every
login, and lets the server live on after its owner was killed.
"""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from deploy.local.errors import RunnerError
from deploy.local.postgres_files import SUPERUSER, PostgresFiles, binaries, environment
from deploy.local.postgres_roles import (
    ROLE_KINDS,
    ServiceUrls,
    checked_name,
    database_sql,
    role_sql,
    url,
)
from deploy.local.processes import HOST, POLL_S, Child, free_port, require_free_port

START_LIMIT_S = 60.0
STOP_LIMIT_S = 30.0
SQL_LIMIT_S = 60.0
FREE_PORT_ATTEMPTS = 5
SETTINGS = {
    "listen_addresses": HOST,
    "unix_socket_directories": "",
    "max_connections": "300",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] %u@%d ",
    # The services' statements are short: compiling them would cost more than running them.
    "jit": "off",
}
# For tests only: their data need not survive the loss of power.
NOT_DURABLE = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


@dataclasses.dataclass
class PostgresServer:
    """One server on 127.0.0.1; port 0 means a free one, known after start().

    fsync and synchronous_commit are on unless durable is False.
    """

    data_dir: Path
    port: int = 0
    log_file: Path | None = None
    durable: bool = True

    def __post_init__(self) -> None:
        self.data_dir = self.data_dir.resolve()
        self.log_file = self.log_file or self.data_dir / "postgres.log"
        self.files = PostgresFiles(self.data_dir, self.log_file)
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
    def admin_url(self) -> str:
        """The superuser's address; for provisioning and inspection, never for a service."""
        return url(SUPERUSER, self.files.passwords[SUPERUSER], self.port, "postgres")

    def load(self) -> None:
        """Read the passwords of a server that another process runs here, for urls()."""
        self.files.load_passwords()

    def start(self) -> None:
        """Make the data directory if there is none, and return once logins are accepted."""
        self.files.prepare(durable=self.durable)
        self.files.clear_survivor()
        wanted, attempts = self.port, 1 if self.port else FREE_PORT_ATTEMPTS
        if wanted:
            require_free_port(wanted, "PostgreSQL")
        deadline = time.monotonic() + START_LIMIT_S
        while True:
            self.port = wanted or free_port()
            failure = self._launch(deadline)
            if failure is None:
                return
            attempts -= 1
            in_use = "Address already in use" in failure and attempts > 0
            # Backends of a server that was killed end by themselves within moments.
            orphans = "is still in use" in failure and time.monotonic() < deadline
            if not (in_use or orphans):
                raise RunnerError(f"PostgreSQL did not start; {self.log_file} ends:\n{failure}")
            time.sleep(0.2)

    def stop(self) -> None:
        """Shut down: sessions are ended, the data is written out. Harmless if not running."""
        if self.child is None:
            return
        # SIGINT is PostgreSQL's fast shutdown; SIGTERM would wait for clients to leave.
        self.child.stop(signal.SIGINT, grace_s=STOP_LIMIT_S)
        self.child = None

    def provision(self, service: str) -> ServiceUrls:
        """Make the service's database and its three roles, or put them right; idempotent."""
        roles = [f"tally_{checked_name(service)}_{kind}" for kind in ROLE_KINDS]
        self.files.add_passwords(*roles)
        self.run_sql(
            "".join(role_sql(role, self.files.passwords[role]) for role in roles)
            + database_sql(f"tally_{service}", service)
        )
        return self.urls(service)

    def urls(self, service: str, database: str | None = None) -> ServiceUrls:
        """Return the addresses of a provisioned service's database, or of a clone of it."""
        database = database or f"tally_{service}"
        return ServiceUrls(
            **{
                kind: url(
                    f"tally_{service}_{kind}",
                    self.files.passwords[f"tally_{service}_{kind}"],
                    self.port,
                    database,
                )
                for kind in ROLE_KINDS
            }
        )

    def create_database(
        self, name: str, *, service: str, template: str | None = None
    ) -> ServiceUrls:
        """Make another database of a provisioned service, as a clone of template if given.

        Nobody may be connected to the template meanwhile.
        """
        self.run_sql(database_sql(name, service, template))
        return self.urls(service, name)

    def drop_database(self, name: str) -> None:
        """Drop a database, ending the sessions in it. Harmless if there is none."""
        self.run_sql(f'DROP DATABASE IF EXISTS "{checked_name(name)}" WITH (FORCE);\n')

    def run_sql(self, script: str, database: str = "postgres") -> str:
        """Run a script as superuser through psql and return its unaligned output."""
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
            env=environment() | {"PGPASSWORD": self.files.passwords[SUPERUSER]},
        )
        if result.returncode != 0:
            raise RunnerError(f"PostgreSQL refused: {result.stderr.strip()}")
        return result.stdout

    def _launch(self, deadline: float) -> str | None:
        """Start once. Return None when it accepts logins, else the end of its log."""
        settings = SETTINGS | {"port": str(self.port)} | ({} if self.durable else NOT_DURABLE)
        options = [f"--{name}={value}" for name, value in settings.items()]
        assert self.log_file is not None
        self.child = Child(
            "postgres",
            [binaries() / "postgres", "-D", self.files.pgdata, *options],
            log_file=self.log_file,
            env=environment(),
            user=self.files.user,
            # Immediate shutdown: the next start recovers from the log, and none is left behind.
            death_signal=signal.SIGQUIT,
        )
        while self.child.exit_code() is None:
            if self.files.status(self.child.pid) == "ready":
                return None
            if time.monotonic() > deadline:
                break
            time.sleep(POLL_S)
        tail = self.child.log_tail()
        self.child.stop(signal.SIGQUIT)
        return tail
