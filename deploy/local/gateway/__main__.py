"""``python -m deploy.local.gateway``: serve until SIGTERM or Ctrl-C.

Prints ``listening on http://HOST:PORT`` once it answers. A bad option, data file or port makes it
print one line and exit with 2.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import socket
import sqlite3
import sys
from collections.abc import Generator
from pathlib import Path

import uvicorn

from deploy.local.gateway.app import Latency, Simulator
from deploy.local.gateway.ledger import Ledger

_GRACE_S = 5


class _Server(uvicorn.Server):
    """uvicorn, which prints its address and exits with 0 after a stop signal."""

    def __init__(self, config: uvicorn.Config, address: str, stopping: asyncio.Event) -> None:
        super().__init__(config)
        self._address = address
        self._stopping = stopping

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print(f"listening on {self._address}", flush=True)

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        yield

    def _stop(self) -> None:
        self._stopping.set()
        self.should_exit = True


async def _serve(options: argparse.Namespace, listener: socket.socket, ledger: Ledger) -> None:
    host, port = listener.getsockname()[:2]
    stopping = asyncio.Event()
    low_ms, high_ms = options.latency_ms
    simulator = Simulator(
        ledger=ledger,
        secret_key=options.secret_key_file,
        latency=Latency(low_ms, high_ms, options.slow_ms),
        stopping=stopping,
    )
    config = uvicorn.Config(
        simulator.app(),
        http="h11",
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=_GRACE_S,
    )
    await _Server(config, f"http://{host}:{port}", stopping).serve(sockets=[listener])


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="gateway", description="A payment gateway simulator.")
    add = parser.add_argument
    add("--host", default="127.0.0.1")
    add("--port", type=int, default=0, help="0 (default): any free port")
    add("--data-file", type=Path, required=True, help="the record of all charges")
    add("--secret-key-file", type=_secret_key, required=True, help="has the merchant's secret key")
    add("--latency-ms", type=_range_ms, default=(100, 500), metavar="LOW-HIGH", help="of each call")
    add("--slow-ms", type=int, default=3000, help="more for slow_ keys (default 3000)")
    return parser.parse_args(arguments)


def _secret_key(file: str) -> str:
    try:
        key = Path(file).read_text().strip()
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"cannot be read: {error}") from error
    if not key or not key.isascii():
        raise argparse.ArgumentTypeError(f"{file} holds no key")
    return key


def _range_ms(text: str) -> tuple[int, int]:
    low, dash, high = text.partition("-")
    if not (low.isdecimal() and high.isdecimal() and dash) or int(low) > int(high):
        raise argparse.ArgumentTypeError("must be LOW-HIGH in milliseconds, as 100-500")
    return int(low), int(high)


def main(arguments: list[str] | None = None) -> int:
    """Serve until a stop signal; the exit code."""
    options = _options(arguments)
    with contextlib.ExitStack() as exits:
        try:
            ledger = Ledger(options.data_file)
            exits.callback(ledger.close)
            listener = socket.create_server((options.host, options.port), backlog=1024)
            exits.enter_context(listener)
        except sqlite3.Error as error:
            return _fail(f"use {options.data_file}: {error}")
        except OSError as error:
            why = os.strerror(error.errno or 0)
            return _fail(f"listen on {options.host}:{options.port}: {why}")
        asyncio.run(_serve(options, listener, ledger))
    return 0


def _fail(what: str) -> int:
    print(f"gateway: cannot {what}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
