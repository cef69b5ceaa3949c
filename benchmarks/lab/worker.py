"""A process of the lab. It takes orders on its input, and replies with a line of JSON to each.

The first prepares a cell. The second lets it run, from a time of the machine's monotonic clock on;
the reply is what became of each request. The third closes it: a consumer serves the other processes
until all have ended.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Final

import asyncpg
import uvloop

from benchmarks.lab.experiment import ERRORED, OK, REFUSED, Run
from benchmarks.lab.experiments import EXPERIMENTS
from benchmarks.lab.notes import Notes
from benchmarks.lab.opening import open_tools
from benchmarks.lab.size import Request, Size
from benchmarks.lab.tools import Conflict, Refused, Tools
from common.locking.lock_errors import LockError

LINE_BYTES_MAX: Final = 1 << 24


@dataclass(slots=True)
class Done:
    """What became of this process's requests."""

    answers: list[tuple[int, str, float]] = field(default_factory=list)
    """Thing, outcome and latency in milliseconds."""
    unknown: list[int] = field(default_factory=list)
    """Things of requests that may have happened though nobody was told so."""
    errors: Counter[str] = field(default_factory=Counter)
    ended_ns: int = 0


async def one(run: Run, tools: Tools, request: Request, done: Done) -> None:
    began = time.perf_counter()
    try:
        await run(tools, request)
        outcome = OK
    except Refused:
        outcome = REFUSED
    except Exception as error:  # noqa: BLE001 - an outcome, counted by its kind
        outcome = ERRORED
        done.errors[type(error).__name__] += 1
        if not isinstance(error, Conflict | asyncpg.PostgresError | LockError):
            done.unknown.append(request.thing)
    except BaseException:
        done.unknown.append(request.thing)
        raise
    done.answers.append((request.thing, outcome, (time.perf_counter() - began) * 1000))
    done.ended_ns = time.monotonic_ns()


async def perform(run: Run, tools: Tools, requests: Sequence[Request]) -> Done:
    """Carry the requests out, so many at once, until the time limit."""
    done = Done(ended_ns=time.monotonic_ns())
    pending: Iterator[Request] = iter(requests)

    async def caller() -> None:
        for request in pending:
            await one(run, tools, request, done)

    callers = [
        asyncio.create_task(caller()) for _ in range(tools.size.callers or len(requests) or 1)
    ]
    _, late = await asyncio.wait(callers, timeout=tools.size.limit_s)
    for task in late:
        task.cancel()
    await asyncio.gather(*callers, return_exceptions=True)
    if late:
        done.ended_ns = time.monotonic_ns()
    return done


async def cell(order: dict[str, Any], orders: asyncio.StreamReader) -> None:
    """Prepare one cell, run it, and close it, each when ordered."""
    experiment = EXPERIMENTS[order["experiment"]]
    strategy = experiment.strategies[order["strategy"]]
    size = Size(**order["size"])
    process = int(order["process"])
    requests = experiment.plan(size, order["seed"])[process :: size.processes]
    opened = open_tools(
        experiment,
        strategy,
        size,
        process,
        postgres_url=order["postgres_url"],
        redis_url=order["redis_url"],
    )
    async with AsyncExitStack() as exits:
        tools = await exits.enter_async_context(opened)
        reply(ready=True)
        go = json.loads(await orders.readline())
        await asyncio.sleep(max(0.0, (go["at_ns"] - time.monotonic_ns()) / 1e9))
        reply_done(await perform(strategy.run, tools, requests), tools.notes)
        await orders.readline()
    reply(closed=True)


def reply_done(done: Done, notes: Notes) -> None:
    reply(
        answers=done.answers,
        unknown=done.unknown,
        errors=done.errors,
        ended_ns=done.ended_ns,
        counts=notes.counts,
        waits_ms=notes.waits_ms,
        holds_ms=notes.holds_ms,
        gateway=list(notes.gateway.items()),
        depth_max=notes.depth_max,
    )


def reply(**values: object) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


async def main() -> None:
    orders = asyncio.StreamReader(limit=LINE_BYTES_MAX)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    reply(started=True)
    while line := await orders.readline():
        await cell(json.loads(line), orders)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
