"""nginx in front of the replicas: a child on free ports of 127.0.0.1, within one directory."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from deploy.local.errors import RunnerError
from deploy.local.postgres_files import server_user
from deploy.local.processes import (
    FREE_PORT_ATTEMPTS,
    HOST,
    PORT_IN_USE,
    Child,
    free_port,
    plain_path,
)
from deploy.local.readiness import wait_for_port

CONFIG: Final = Path(__file__).with_name("nginx.conf")
SERVICE_CONFIG: Final = Path(__file__).with_name("service.conf")
SYSTEM_PATH: Final = "/usr/local/sbin:/usr/sbin:/sbin"
"""Where Debian installs it, which is not on every user's path."""
HTTP2_DIRECTIVE_SINCE: Final = (1, 25, 1)
MISSING: Final = "nginx is not installed: `apt-get install nginx` on Debian or Ubuntu has it"
START_LIMIT_S: Final = 30.0
STOP_LIMIT_S: Final = 5.0


def find() -> Path | None:
    """nginx's program; None if it is not installed."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), SYSTEM_PATH])
    found = shutil.which("nginx", path=path)
    return Path(found) if found else None


@contextlib.contextmanager
def round_robin(
    services: Mapping[str, Sequence[str]], directory: Path, log_file: Path
) -> Iterator[dict[str, list[str]]]:
    """The one address of each service at which its replicas get calls in turn.

    Enter it in the main thread (see Child). Raises RunnerError if nginx is missing or does not
    start.
    """
    program = find()
    if program is None:
        raise RunnerError(MISSING)
    for attempt in range(1, FREE_PORT_ATTEMPTS + 1):
        ports = {service: free_port() for service in services}
        _write(directory, _listen_form(program), services, ports)
        nginx = _launch(program, directory, log_file)
        with contextlib.ExitStack() as exits:
            exits.callback(nginx.stop, grace_s=STOP_LIMIT_S)
            try:
                for port in ports.values():
                    wait_for_port(nginx, port, limit_s=START_LIMIT_S)
            except RunnerError:
                if attempt == FREE_PORT_ATTEMPTS or PORT_IN_USE not in nginx.log_text():
                    raise
                continue
            yield {service: [f"{HOST}:{port}"] for service, port in ports.items()}
            return


def service_config(service: str, listen: str, replicas: Sequence[str]) -> str:
    """service.conf with its values. ``listen``: the directives that open its port."""
    # A replica is left out for a while after several failures. nginx's default is one failure, and
    # a connection that was closed for its age when a call came counts as one.
    lines = [f"    server {replica} max_fails=3 fail_timeout=5s;" for replica in replicas]
    text = SERVICE_CONFIG.read_text()
    for name, value in {
        "@service@": service,
        "@listen@": listen,
        "@replicas@": "\n".join(lines),
    }.items():
        text = text.replace(name, value)
    return text


def _listen_form(program: Path) -> str:
    """The directives with which this nginx speaks HTTP/2 on a port; ``{}`` is the address."""
    output = subprocess.run([program, "-v"], capture_output=True, text=True, check=True).stderr
    version = re.search(r"nginx/(\d+)\.(\d+)\.(\d+)", output)
    if version is None:
        raise RunnerError(f"{program} does not print its version: {output.strip()}")
    if tuple(map(int, version.groups())) >= HTTP2_DIRECTIVE_SINCE:
        return "    listen {};\n    http2 on;"
    return "    listen {} http2;"


def _write(
    directory: Path,
    listen_form: str,
    services: Mapping[str, Sequence[str]],
    ports: Mapping[str, int],
) -> None:
    user = server_user()
    for place in (directory, directory / "services", directory / "temp"):
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
    shutil.copyfile(CONFIG, directory / "nginx.conf")
    for service, replicas in services.items():
        listen = listen_form.format(f"{HOST}:{ports[service]}")
        text = service_config(service, listen, replicas)
        (directory / "services" / f"{service}.conf").write_text(text)
    for place in (directory, *directory.rglob("*")):
        os.chown(place, user.uid, user.gid)


def _launch(program: Path, directory: Path, log_file: Path) -> Child:
    return Child(
        "nginx",
        [
            *(program, "-p", directory, "-c", directory / "nginx.conf"),
            *("-e", "stderr", "-g", "daemon off;"),
        ],
        log_file=log_file,
        env=plain_path(),
        cwd=directory,
        user=server_user(),
        # The worker of a killed master does not end; the master passes SIGTERM on.
        death_signal=signal.SIGTERM,
    )
