"""nginx in front of the replicas: a child on free ports of 127.0.0.1, within one directory."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from deploy.local.errors import RunnerError
from deploy.local.postgres_files import server_user
from deploy.local.processes import HOST, Child, LocalServer, free_port, plain_path

CONFIG: Final = Path(__file__).with_name("nginx.conf")
SERVICE_CONFIG: Final = Path(__file__).with_name("service.conf")
SYSTEM_PATH: Final = "/usr/local/sbin:/usr/sbin:/sbin"
"""Where Debian installs it, which is not on every user's path."""
MISSING: Final = "nginx is not installed: `apt-get install nginx` on Debian or Ubuntu has it"
CONNECT_LIMIT_S: Final = 1.0

Services = Mapping[str, Sequence[str]]
"""The addresses of each service."""


def find() -> Path | None:
    """nginx's program; None if it is not installed."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), SYSTEM_PATH])
    found = shutil.which("nginx", path=path)
    return Path(found) if found else None


@contextlib.contextmanager
def round_robin(services: Services, directory: Path, log_file: Path) -> Iterator[Services]:
    """The one address of each service at which its replicas get calls in turn.

    Enter it in the main thread (see Child). Raises RunnerError if nginx is missing or does not
    start.
    """
    program = find()
    if program is None:
        raise RunnerError(MISSING)
    with _Nginx(program, services, directory, log_file) as nginx:
        yield {service: [f"{HOST}:{port}"] for service, port in nginx.ports.items()}


class _Nginx(LocalServer):
    """One server, with a free port for each service."""

    # The worker of a killed master does not end; the master passes SIGTERM on.
    kill_signal = signal.SIGTERM

    def __init__(self, program: Path, services: Services, directory: Path, log_file: Path) -> None:
        super().__init__("nginx", 0, log_file)
        self.ports: dict[str, int] = {}
        self._program = program
        self._services = services
        self._directory = directory

    def _spawn(self) -> Child:
        self.ports = {service: free_port() for service in self._services}
        user = server_user()
        directory = self._directory
        for place in (directory, directory / "services", directory / "temp"):
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
        shutil.copyfile(CONFIG, directory / "nginx.conf")
        for service in self._services:
            (directory / "services" / f"{service}.conf").write_text(self._service_config(service))
        for place in (directory, *directory.rglob("*")):
            os.chown(place, user.uid, user.gid)
        return Child(
            "nginx",
            [
                *(self._program, "-p", directory, "-c", directory / "nginx.conf"),
                *("-e", "stderr", "-g", "daemon off;"),
            ],
            log_file=self.log_file,
            env=plain_path(),
            cwd=directory,
            user=user,
            death_signal=self.kill_signal,
        )

    def _service_config(self, service: str) -> str:
        # A replica is left out for a while after several failures. nginx's default is one failure,
        # and a connection that was closed for its age when a call came counts as one.
        replicas = "\n".join(
            f"    server {replica} max_fails=3 fail_timeout=5s;"
            for replica in self._services[service]
        )
        return (
            SERVICE_CONFIG.read_text()
            .replace("@service@", service)
            .replace("@address@", f"{HOST}:{self.ports[service]}")
            .replace("@replicas@", replicas)
        )

    def _is_ready(self, child: Child) -> bool:  # noqa: ARG002 - a port taken by another program ends nginx
        try:
            for port in self.ports.values():
                socket.create_connection((HOST, port), timeout=CONNECT_LIMIT_S).close()
        except OSError:
            return False
        return True
