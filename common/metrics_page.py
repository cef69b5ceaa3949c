"""The Prometheus page on a port of its own, over TLS if it has a certificate."""

from __future__ import annotations

import socket
import ssl
import sys
import threading
import time
from pathlib import Path
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, make_server

import structlog
from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

from common.metrics import REGISTRY
from common.tls import REFRESH_S, UnusableCertificate, page_context

LIMIT_S: Final = 10.0
"""How long a connection may send nothing, its handshake included."""

_log = structlog.stdlib.get_logger()


class MetricsPage:
    """The page. A thread serves it: a busy loop causes no delay."""

    def __init__(
        self,
        host: str,
        port: int,
        registry: CollectorRegistry = REGISTRY,
        *,
        tls_dir: Path | None = None,
    ) -> None:
        """Listen at once. ``tls_dir``: see ``common.tls``; None: plaintext.

        Raises OSError if the port is not free, and UnusableCertificate.
        """
        contexts = None if tls_dir is None else _Contexts(tls_dir)
        family, *_, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]

        class Server(_Server):
            address_family = family

        Server.contexts = contexts
        self._server = make_server(
            str(address[0]), port, make_wsgi_app(registry), Server, handler_class=_Handler
        )
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The port it listens on, also if 0 was given."""
        return int(self._server.server_port)

    def close(self) -> None:
        """Stop listening and wait for the thread."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Contexts:
    """The certificate that new connections get: that of the files, read again every REFRESH_S."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._context = page_context(directory)
        self._read_s = time.monotonic()
        self._problem = ""

    def current(self) -> ssl.SSLContext:
        """The context of a new connection; the last good one if the files cannot be used now."""
        if time.monotonic() - self._read_s >= REFRESH_S:
            self._read_s = time.monotonic()
            problem = ""
            try:
                self._context = page_context(self._directory)
            except UnusableCertificate as error:
                problem = str(error)
            if problem and problem != self._problem:
                _log.warning("certificate_not_read", port="metrics", reason=problem)
            self._problem = problem
        return self._context


class _Server(ThreadingWSGIServer):
    contexts: _Contexts | None = None

    def get_request(self) -> tuple[Any, Any]:
        connection, address = super().get_request()
        if self.contexts is None:
            return connection, address
        # The handshake follows with the first read, in the connection's own thread: one that sends
        # nothing must not hold up the others.
        return self.contexts.current().wrap_socket(
            connection, server_side=True, do_handshake_on_connect=False
        ), address

    def handle_error(self, _request: Any, _address: Any) -> None:
        """Log the error of a connection in one line, such as that it speaks no TLS."""
        _log.info("metrics_connection_failed", reason=str(sys.exception()))


class _Handler(WSGIRequestHandler):
    timeout = LIMIT_S

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - its name there
        """Log no requests."""
