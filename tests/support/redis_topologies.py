"""A Valkey primary with a replica and a Sentinel, and a cluster of three nodes: all are real."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from redis.asyncio import Redis

from common.locking.key_scripts import redis_keys
from common.locking.redis import slot_of
from deploy.local.processes import HOST, Child, plain_path
from deploy.local.valkey import ValkeyServer, binary
from tests.support.time_limits import LONG_S

SERVICE: Final = "tally"
SLOTS: Final = 16_384
DOWN_AFTER_MS: Final = 300


def password_of(server: ValkeyServer) -> str:
    return urlsplit(server.url).password or ""


async def command(server: ValkeyServer, password: str, *words: str | int) -> Any:
    async with Redis(
        host=HOST, port=server.port, password=password or None, decode_responses=True
    ) as client:
        return await client.execute_command(*words)  # type: ignore[no-untyped-call]


async def share_password(servers: Sequence[ValkeyServer]) -> str:
    """Give all servers the password of the first one."""
    password = password_of(servers[0])
    for server in servers:
        await command(server, password_of(server), "CONFIG", "SET", "masterauth", password)
        await command(server, password_of(server), "CONFIG", "SET", "requirepass", password)
    return password


async def _until(
    condition: Callable[[Any], bool], server: ValkeyServer, password: str, *words: str
) -> None:
    """Until the reply to a command fulfils ``condition``."""
    async with asyncio.timeout(LONG_S):
        while not condition(await command(server, password, *words)):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


# -- Sentinel ------------------------------------------------------------------------------------


class SentinelServer(ValkeyServer):
    """A Sentinel that watches one primary, and needs no other's vote."""

    def __init__(self, data_dir: Path, primary_port: int, password: str) -> None:
        super().__init__(data_dir)
        self._primary_port = primary_port
        self._primary_password = password

    def _spawn(self) -> Child:
        self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        config = self.data_dir / "sentinel.conf"
        config.write_text(
            f"bind {HOST}\nport {self.port}\n"
            f"sentinel monitor {SERVICE} {HOST} {self._primary_port} 1\n"
            f"sentinel auth-pass {SERVICE} {self._primary_password}\n"
            f"sentinel down-after-milliseconds {SERVICE} {DOWN_AFTER_MS}\n"
            f"sentinel failover-timeout {SERVICE} 2000\n"
        )
        words: list[str | Path] = [binary(), config, "--sentinel"]
        return Child("sentinel", words, log_file=self.log_file, env=plain_path(), cwd=self.data_dir)

    def _is_ready(self, child: Child) -> bool:
        try:
            with socket.create_connection((HOST, self.port), timeout=1.0) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith(b"+PONG")
        except OSError:
            return False


@dataclass(frozen=True, slots=True)
class Watched:
    """A primary and its replica, found by Sentinel."""

    url: str
    primary: ValkeyServer
    replica: ValkeyServer
    password: str

    async def until_replicating(self) -> None:
        await _until(_connected, self.replica, self.password, "ROLE")


def _connected(role: Any) -> bool:
    return bool(role[3] == "connected")


@asynccontextmanager
async def watched(folder: Path) -> AsyncIterator[Watched]:
    with ExitStack() as exits:
        primary, replica = (
            exits.enter_context(ValkeyServer(folder / name)) for name in ("primary", "replica")
        )
        password = await share_password([primary, replica])
        await command(replica, password, "REPLICAOF", HOST, primary.port)
        sentinel = exits.enter_context(SentinelServer(folder / "sentinel", primary.port, password))
        url = f"redis+sentinel://:{password}@{HOST}:{sentinel.port}/{SERVICE}/0"
        running = Watched(url, primary, replica, password)
        await running.until_replicating()
        await _until_known(sentinel)
        yield running


async def _until_known(sentinel: SentinelServer) -> None:
    """Until Sentinel has found the replica, which it can promote only then."""
    await _until(bool, sentinel, "", "SENTINEL", "REPLICAS", SERVICE)


# -- cluster -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Nodes:
    """A cluster of three primaries."""

    url: str
    servers: Sequence[ValkeyServer]
    password: str

    async def owner_of(self, slot: int) -> ValkeyServer:
        slots = await command(self.servers[0], self.password, "CLUSTER", "SLOTS")
        for low, high, (_host, port, *_), *_ in slots:
            if low <= slot <= high:
                return next(server for server in self.servers if server.port == port)
        raise LookupError(slot)

    async def move(self, slot: int) -> None:
        """Give an empty slot to the next node."""
        owner = self.servers.index(await self.owner_of(slot))
        target = self.servers[(owner + 1) % len(self.servers)]
        id_ = await command(target, self.password, "CLUSTER", "MYID")
        for server in (target, *self.servers):
            await command(server, self.password, "CLUSTER", "SETSLOT", slot, "NODE", id_)

    async def empty(self, key: str) -> None:
        """Delete what the locks have in the slot of the key."""
        owner = await self.owner_of(slot_of(key))
        await command(owner, self.password, "DEL", *redis_keys((key,)))


def _range(number: int) -> tuple[int, int]:
    share = SLOTS // 3
    return number * share, SLOTS - 1 if number == 2 else (number + 1) * share - 1


def _is_ok(info: Any) -> bool:
    return "cluster_state:ok" in str(info)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def three_nodes(folder: Path) -> AsyncIterator[Nodes]:
    with ExitStack() as exits:
        buses = [_free_port() for _ in range(3)]
        servers = [
            exits.enter_context(
                ValkeyServer(
                    folder / str(number),
                    options=f"cluster-enabled yes\ncluster-port {bus}\ncluster-node-timeout 2000\n",
                )
            )
            for number, bus in enumerate(buses)
        ]
        password = await share_password(servers)
        for number, server in enumerate(servers):
            low, high = _range(number)
            await command(server, password, "CLUSTER", "ADDSLOTSRANGE", low, high)
        for server, bus in zip(servers[1:], buses[1:], strict=True):
            await command(servers[0], password, "CLUSTER", "MEET", HOST, server.port, bus)
        for server in servers:
            await _until(_is_ok, server, password, "CLUSTER", "INFO")
        places = ",".join(f"{HOST}:{server.port}" for server in servers)
        yield Nodes(f"redis+cluster://:{password}@{places}", servers, password)
