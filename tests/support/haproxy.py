"""HAProxy with the configuration of deploy/proxy, in front of one service."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path
from typing import Final

from common.tls import AUTHORITIES, CERTIFICATE
from deploy.load.nginx import SYSTEM_PATH
from deploy.local.plan import PROJECT
from deploy.local.processes import HOST, Child, LocalServer, plain_path
from tests.support.certificates import NAME

CONFIG: Final = PROJECT / "deploy" / "proxy" / "haproxy.cfg"


def find() -> str | None:
    """HAProxy's program; None if it is not installed."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), SYSTEM_PATH])
    return shutil.which("haproxy", path=path)


class HaProxy(LocalServer):
    """One proxy on a free port of 127.0.0.1. It has the service's own certificate."""

    def __init__(self, service_port: int, directory: Path, log_file: Path) -> None:
        """``directory``: the service's ``tls.crt`` and ``tls.key``, and ``ca.crt``."""
        super().__init__("haproxy", 0, log_file)
        self._service_port = service_port
        self._directory = directory

    def _spawn(self) -> Child:
        program = find()
        assert program is not None
        variables = {
            "PROXY_BIND": f"{HOST}:{self.port}",
            "PROXY_CERTIFICATE": str(self._directory / CERTIFICATE),
            "TALLY_ADDRESS": f"{HOST}:{self._service_port}",
            "TALLY_AUTHORITY": str(self._directory / AUTHORITIES),
            "TALLY_NAME": NAME,
        }
        command: list[str | Path] = [program, "-db", "-f", CONFIG]
        return Child("haproxy", command, log_file=self.log_file, env=plain_path() | variables)

    def _is_ready(self, child: Child) -> bool:
        if child.exit_code() is not None:
            return False
        try:
            socket.create_connection((HOST, self.port), timeout=1.0).close()
        except OSError:
            return False
        return True
