"""How one session of a database is made: its limits, its socket, its name look-up, its password."""

from __future__ import annotations

import asyncio
import math
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import asyncpg
import structlog

from common.db.statements import Compiled, Prepared
from common.urls import engine_url

CONNECT_TIMEOUT_S: Final = 3.0
"""Time limit of opening a session, the look-up of the host's name included."""
KEEPALIVE_IDLE_S: Final = 10
"""After this time without data each side asks whether the other is there, which also keeps the
connection in the tables of NATs and firewalls."""
KEEPALIVE_INTERVAL_S: Final = 2
KEEPALIVE_COUNT: Final = 3
PEER_LOST_S: Final = KEEPALIVE_IDLE_S + KEEPALIVE_INTERVAL_S * KEEPALIVE_COUNT
"""The connection ends after this time in which the other side acknowledged nothing."""
ABANDONED_MS: Final = 1_000
"""A server whose client is gone ends a running statement, and frees its row locks, this soon."""

SERVER_SETTINGS: Final = {
    "tcp_keepalives_idle": str(KEEPALIVE_IDLE_S),
    "tcp_keepalives_interval": str(KEEPALIVE_INTERVAL_S),
    "tcp_keepalives_count": str(KEEPALIVE_COUNT),
    "tcp_user_timeout": str(PEER_LOST_S * 1_000),
    "client_connection_check_interval": str(ABANDONED_MS),
}
"""The server's side of the connection, as startup parameters."""

_SOCKET_OPTIONS: Final = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_COUNT),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, PEER_LOST_S * 1_000),
)

_log = structlog.stdlib.get_logger()


class Session(asyncpg.Connection):  # type: ignore[misc]  # asyncpg is untyped
    """A session of the driver that notices that its server is gone."""

    def __init__(self, protocol: Any, transport: asyncio.Transport, *arguments: Any) -> None:
        super().__init__(protocol, transport, *arguments)
        for level, option, value in _SOCKET_OPTIONS:
            transport.get_extra_info("socket").setsockopt(level, option, value)
        self.prepared: dict[Compiled, Prepared] = {}
        """The statements that are prepared in this session."""
        self.checked = False
        """Whether the settings of its server are checked (``common.db.readiness``)."""
        self.made_s = self.used_s = self.planned_s = time.monotonic()
        """When it was opened, last used, and last made to forget its plans."""
        self.ends_s = math.inf
        """When it is too old to be used again."""

    def terminate(self) -> None:
        """Abort the socket; the server is not asked."""
        # They refer to the session, which would stay in memory until the collector finds the cycle.
        self.prepared.clear()
        super().terminate()


@dataclass(frozen=True)
class Connector:
    """Opens the sessions of one database."""

    url_file: Path | None = None
    """The file that the URL came from. It is read again for each session, so that a changed
    password is used without a restart. Only user and password are taken: with another host, old
    and new sessions would be on two servers."""
    _look_ups: dict[tuple[str, int], asyncio.Task[Any]] = field(default_factory=dict)

    async def connect(self, host: str, port: int = 5432, **arguments: Any) -> Session:
        """A session with these arguments of asyncpg. Raises TimeoutError, or what asyncpg raises.

        It takes CONNECT_TIMEOUT_S at most.
        """
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            await self._look_up(host, port)
            session: Session = await asyncpg.connect(
                host=host,
                port=port,
                connection_class=Session,
                # asyncpg's own limit would be another one; the block's counts.
                timeout=None,
                **{**arguments, **self._credentials()},
            )
            return session

    async def _look_up(self, host: str, port: int) -> None:
        """Wait until the name has an address. Raises OSError.

        A name server that answers nothing holds a thread for 10 s and more, and the loop has few
        (uvloop: 4), which the names of Redis and the gateway need too. So each name is looked up
        once at a time, however many sessions wait. asyncpg's own look-up follows one that was
        answered.
        """
        task = self._look_ups.get((host, port))
        if task is None:
            loop = asyncio.get_running_loop()
            task = loop.create_task(loop.getaddrinfo(host, port, type=socket.SOCK_STREAM))
            self._look_ups[host, port] = task
            task.add_done_callback(lambda done: self._looked_up(host, port, done))
        await asyncio.shield(task)

    def _looked_up(self, host: str, port: int, task: asyncio.Task[Any]) -> None:
        del self._look_ups[host, port]
        if not task.cancelled():
            # Retrieved, so that asyncio does not log that nobody did.
            task.exception()

    def _credentials(self) -> Mapping[str, str]:
        """User and password as they are in the file now; none if they did not come from a file."""
        if self.url_file is None:
            return {}
        try:
            url = engine_url(self.url_file.read_text(encoding="utf-8").strip())
        except (OSError, ValueError) as error:
            # No text of the file is logged. The password of the start may be valid still.
            reason = (isinstance(error, OSError) and error.strerror) or "malformed"
            _log.warning("database url not read", file=str(self.url_file), reason=reason)
            return {}
        found = {"user": url.username, "password": url.password}
        return {name: str(value) for name, value in found.items() if value}
