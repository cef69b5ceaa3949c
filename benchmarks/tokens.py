"""`python -m benchmarks.tokens`: what a token costs a server, in its processor time per call.

The kinds of calls run in turn, round after round, so that what else the machine does meets all of
them alike. Processor time, and not the rate, is compared. With other work on the machine it varies
as well: only figures from an idle one count.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc
import uvloop
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from benchmarks.guard_cost import guard_us
from benchmarks.servers.empty_server import METHOD as EMPTY
from benchmarks.servers.token_server import METHOD
from deploy.local.identities import Issuer
from deploy.local.plan import PROJECT, plain_environment
from deploy.local.processes import HOST, Child, free_port
from tally.balance.v1 import balance_pb2 as pb

CALLERS: Final = 16
CALLS: Final = 500
ROUNDS: Final = 60
WARM_UP: Final = 500
USERS: Final = 10_000


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of calls."""

    what: str
    call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]
    """Of the channel of its server."""
    tokens: Sequence[str]
    """Sent in turn; empty: none is sent."""

    async def run(self, calls: int) -> None:
        """Call so many times, from several callers."""
        numbers = iter(range(calls))

        async def caller() -> None:
            for number in numbers:
                user = number % len(self.tokens) if self.tokens else 0
                token = self.tokens[user] if self.tokens else ""
                metadata = (("authorization", f"Bearer {token}"),) if token else ()
                request = pb.GetBalanceRequest(user_id=f"user-{user}", currency_code="KRW")
                await self.call(request.SerializeToString(), metadata=metadata, timeout=60)

        await asyncio.gather(*(caller() for _ in range(CALLERS)))


def cpu_us(pid: int) -> float:
    """The processor time that a process has used, all threads together."""
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(each.read_text().split()[0]) for each in threads) / 1_000


def rss_bytes(pid: int) -> int:
    """The memory of a process."""
    [line] = [
        line
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if line.startswith("VmRSS")
    ]
    return int(line.split()[1]) * 1024


@contextmanager
def token_server(issuer: Issuer) -> Iterator[tuple[Child, list[str]]]:
    """The process of the three servers, and their addresses."""
    with tempfile.TemporaryDirectory() as folder:
        jwks = Path(folder, "jwks.json")
        jwks.write_text(issuer.jwks(), encoding="utf-8")
        ports = [free_port() for _ in range(3)]
        child = Child(
            "tokens",
            [sys.executable, "-m", "benchmarks.servers.token_server", *map(str, ports), jwks],
            log_file=Path(folder, "server.log"),
            env=plain_environment(),
            cwd=PROJECT,
        )
        try:
            yield child, [f"{HOST}:{port}" for port in ports]
        finally:
            child.stop()


async def measure() -> None:
    """Print a table."""
    issuer = Issuer(Ed25519PrivateKey.generate())
    tokens = [issuer.token(f"user-{number}") for number in range(USERS)]
    with token_server(issuer) as (child, addresses):
        channels = [grpc.aio.insecure_channel(address) for address in addresses]
        for channel in channels:
            await asyncio.wait_for(channel.channel_ready(), 30)
        empty, unguarded, guarded = channels
        await asyncio.sleep(2)  # the servers' first probes
        kinds = [
            Kind("empty method", empty.unary_unary(EMPTY), ()),
            Kind("empty method, with a token", empty.unary_unary(EMPTY), tokens[:1]),
            Kind("identity off", unguarded.unary_unary(METHOD), ()),
            Kind("identity off, with a token", unguarded.unary_unary(METHOD), tokens[:1]),
            Kind("identity on, one user", guarded.unary_unary(METHOD), tokens[:1]),
        ]
        first_us, memory = await first_sight(kinds[-1], tokens, child.pid)
        kinds.append(Kind(f"identity on, {USERS:,} users", guarded.unary_unary(METHOD), tokens))
        costs = await in_turn(kinds, child.pid)
        for channel in channels:
            await channel.close()
    empty_us = costs[kinds[0].what]
    alone_us = guard_us(issuer, tokens)
    print(f"{'server processor time per call':<34} {'us':>7} {'÷ empty':>9}")
    for what, each_us in costs.items():
        print(f"{what:<34} {each_us:7.1f} {each_us / empty_us:9.3f}")
    for users in ("one user", f"{USERS:,} users"):
        more_us = costs[f"identity on, {users}"] - costs["identity off, with a token"]
        print(f"a remembered token of {users}: {more_us:.1f} us, {more_us / empty_us:.1%} of empty")
    print(
        f"identity and access without gRPC: {alone_us:.1f} us, {alone_us / empty_us:.1%} of empty"
    )
    print(f"first sight of a token: {first_us:.0f} us more than a remembered one")
    print(f"{USERS:,} remembered tokens: {memory / 2**20:.1f} MiB")


async def first_sight(kind: Kind, tokens: Sequence[str], pid: int) -> tuple[float, int]:
    """What the first call with a token costs more than a later one, and the memory of all."""
    await kind.run(WARM_UP)
    before_bytes, all_users = rss_bytes(pid), Kind("", kind.call, tokens)
    start = cpu_us(pid)
    await all_users.run(len(tokens))
    first = cpu_us(pid)
    await all_users.run(len(tokens))
    again = cpu_us(pid)
    return ((first - start) - (again - first)) / len(tokens), rss_bytes(pid) - before_bytes


async def in_turn(kinds: Sequence[Kind], pid: int) -> Mapping[str, float]:
    """The processor time per call, in microseconds, by kind: that of the least disturbed round."""
    costs: dict[str, list[float]] = {kind.what: [] for kind in kinds}
    for kind in kinds:
        await kind.run(WARM_UP)
    for number in range(ROUNDS):
        for kind in kinds if number % 2 else reversed(kinds):
            before = cpu_us(pid)
            await kind.run(CALLS)
            costs[kind.what].append((cpu_us(pid) - before) / CALLS)
    return {what: min(each) for what, each in costs.items()}


if __name__ == "__main__":
    uvloop.run(measure())
