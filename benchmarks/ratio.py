"""DeductBalance compared with an empty method: the cost of correctness, as a ratio in one run.

One replica with every guarantee (Redis lock, row lock, ledger, idempotency record, fsync) and the
bare server of ``empty_server`` are measured in turn, with the same client and number of callers.
The client, PostgreSQL and Valkey run on the same machine: on two cores the service competes with
all of them, and the empty method only with the client.

    python -m benchmarks.ratio [--callers 200] [--seconds 5] [--rounds 5]
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cyclopts
import grpc
import uvloop
from rich.console import Console
from rich.table import Table

from balance_service.settings import BalanceSettings
from benchmarks.empty_server import METHOD as EMPTY
from benchmarks.load import Rate, closed_loop
from common.db.migrations import migrate
from common.service import migrations_of
from deploy.local.postgres import PostgresServer
from deploy.local.processes import free_port
from deploy.local.valkey import ValkeyServer
from tally.balance.v1 import balance_pb2 as pb
from tally.type.v1.money_pb2 import Money

DEDUCT = "/tally.balance.v1.BalanceService/DeductBalance"
CHARGE = "/tally.balance.v1.BalanceService/ChargeBalance"
ACCOUNTS = 10_000
TARGET = 0.5


@dataclass(frozen=True, slots=True)
class Subject:
    """What is measured: one line of the report."""

    name: str
    address: str
    method: str
    payload: Callable[[int], bytes]


def _charge(number: int) -> bytes:
    return pb.ChargeBalanceRequest(
        user_id=f"user-{number}",
        amount=Money(currency_code="KRW", amount_minor=10**14),
        request_id=f"open-{number}",
    ).SerializeToString()


def _deduct(accounts: int) -> Callable[[int], bytes]:
    run = uuid.uuid4().hex[:12]

    def payload(number: int) -> bytes:
        return pb.DeductBalanceRequest(
            user_id=f"user-{number * 7919 % accounts}",
            amount=Money(currency_code="KRW", amount_minor=1),
            request_id=f"{run}-{number}",
        ).SerializeToString()

    return payload


@asynccontextmanager
async def subjects() -> AsyncIterator[list[Subject]]:
    """Both servers, each in its own process; the service with a real PostgreSQL and Valkey."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        postgres = stack.enter_context(PostgresServer(folder / "postgres"))
        valkey = stack.enter_context(ValkeyServer(folder / "valkey"))
        urls = postgres.provision("balance")
        await migrate(urls.owner, migrations_of(BalanceSettings))
        empty, balance = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
        port = empty.rsplit(":", 1)[1]
        _process(stack, [sys.executable, "-m", "benchmarks.empty_server", port], {})
        _process(
            stack,
            [sys.executable, "-m", "balance_service"],
            {
                "TALLY_BALANCE_DATABASE_URL": urls.runtime,
                "TALLY_REDIS_URL": valkey.url,
                "TALLY_BALANCE_BIND": balance,
                "TALLY_LOG_LEVEL": "warning",
            },
        )
        async with grpc.aio.insecure_channel(balance) as channel:
            await asyncio.wait_for(channel.channel_ready(), 30)
            charge: Any = channel.unary_unary(CHARGE)
            slots = asyncio.Semaphore(200)

            async def open_account(number: int) -> None:
                async with slots:
                    await charge(_charge(number), wait_for_ready=True)

            await asyncio.gather(*(open_account(number) for number in range(ACCOUNTS)))
        same_size = _deduct(ACCOUNTS)
        yield [
            Subject("empty method", empty, EMPTY, same_size),
            Subject(f"DeductBalance, {ACCOUNTS:,} accounts", balance, DEDUCT, _deduct(ACCOUNTS)),
            Subject("DeductBalance, 1 account", balance, DEDUCT, _deduct(1)),
        ]


def _process(stack: ExitStack, command: list[str], environment: dict[str, str]) -> None:
    process = subprocess.Popen(command, env={**os.environ, **environment})

    def end() -> None:
        process.terminate()
        process.wait(30)

    stack.callback(end)


async def measure(callers: int, seconds: float, rounds: int) -> dict[str, list[Rate]]:
    """Measure the subjects in turn, ``rounds`` times, so that noise affects them alike."""
    rates: dict[str, list[Rate]] = {}
    async with subjects() as listed:
        sent = 0
        for number in range(rounds + 1):
            for subject in listed:
                async with grpc.aio.insecure_channel(subject.address) as channel:
                    method: Any = channel.unary_unary(subject.method)
                    await channel.channel_ready()
                    rate = await closed_loop(
                        method, subject.payload, callers=callers, seconds=seconds, first=sent
                    )
                sent += rate.calls + callers
                if number:  # the first round is a warm-up
                    rates.setdefault(subject.name, []).append(rate)
    return rates


def report(rates: dict[str, list[Rate]]) -> bool:
    """Print the table; returns whether every ratio reaches the target."""
    table = Table("method", "calls/s (median)", "p50 ms", "p99 ms", "ratio to empty (min-max)")
    baseline = next(iter(rates.values()))
    reached = True
    for name, measured in rates.items():
        ratios = [
            rate.per_second / empty.per_second
            for rate, empty in zip(measured, baseline, strict=True)
        ]
        ratio = statistics.median(ratios)
        reached = reached and ratio >= TARGET
        table.add_row(
            name,
            f"{statistics.median(rate.per_second for rate in measured):,.0f}",
            f"{statistics.median(rate.p50_ms for rate in measured):.1f}",
            f"{statistics.median(rate.p99_ms for rate in measured):.1f}",
            f"{ratio:.2f} ({min(ratios):.2f}-{max(ratios):.2f})",
        )
    Console().print(table)
    return reached


def main(*, callers: int = 200, seconds: float = 5.0, rounds: int = 5) -> None:
    """Exit 0 only if DeductBalance reaches half the rate of the empty method in both cases."""
    rates = uvloop.run(measure(callers, seconds, rounds))
    if not report(rates):
        sys.stderr.write(f"below {TARGET} of an empty method: something is not batched\n")
        raise SystemExit(1)


if __name__ == "__main__":
    cyclopts.run(main)
