"""The echo service as a process of its own, for the tests of ``common.service``."""

from __future__ import annotations

import asyncio
import logging
import resource
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import grpc
import structlog
from google.protobuf.wrappers_pb2 import StringValue

from common import service, tracing
from common.service import Application
from tests.integration.common.echo import Echo, EchoSettings, EchoStub, add, always_ready
from tests.integration.start.process import Service, process
from tests.support.collector import ENDPOINT

PASSWORD = "hunter2"
URL = f"postgresql://u:{PASSWORD}@127.0.0.1:1/tally"
FLUSH_S = 60.0
log = structlog.stdlib.get_logger()


class Commands:
    """``say`` does what the request names. Held calls are released by a stream: its slots are
    separate."""

    def __init__(self) -> None:
        self._released = asyncio.Event()
        self._holding = 0

    async def say(self, request: StringValue, context: Any) -> StringValue:
        if request.value == "wait":
            log.info("waiting")
            logging.getLogger("library").warning("waiting too")
            await asyncio.sleep(0.2)
        elif request.value == "hold":
            self._holding += 1
            await self._released.wait()
        elif request.value == "block":
            log.info("blocking")
            time.sleep(FLUSH_S)  # noqa: ASYNC251 - the loop is to be blocked
        elif request.value == "loop":
            return StringValue(value=type(asyncio.get_running_loop()).__module__)
        elif request.value == "tracing":
            return StringValue(value="on" if "common.spans" in sys.modules else "off")
        return request

    async def count(self, request: StringValue, context: Any) -> AsyncIterator[StringValue]:
        """Send the number of held calls; then release them if the request says so."""
        yield StringValue(value=str(self._holding))
        if request.value == "release":
            self._released.set()


@asynccontextmanager
async def build(settings: EchoSettings) -> AsyncIterator[Application]:
    log.info("building", database=settings.database_url.get_secret_value())
    commands = Commands()
    servicer = Echo(commands.say, commands.count)
    yield Application(services=[(add, servicer)], ready=always_ready)
    log.info("closed")


async def migrate(settings: EchoSettings) -> None:
    url = settings.owner_database_url.get_secret_value()
    if url.endswith("fail"):
        raise RuntimeError(f"no answer from {url}\nand a second line")


@asynccontextmanager
async def echo_service(*arguments: str, **environment: str) -> AsyncIterator[Service]:
    """The process, without tracing unless ``environment`` turns it on."""
    given = {ENDPOINT: "", "TALLY_DATABASE_URL": URL, "TALLY_REPLICA": "echo-1", **environment}
    async with process("tests.integration.common.echo_process", *arguments, **given) as running:
        yield running


async def address_of(running: Service) -> str:
    """Its address, once it is ready."""
    port = (await running.line("listening"))["port"]
    await running.line("ready")
    return f"127.0.0.1:{port}"


async def replies(running: Service, *words: str) -> list[str]:
    """The replies to calls of ``Say``, made one after the other once it is ready."""
    async with grpc.aio.insecure_channel(await address_of(running)) as channel:
        return [(await EchoStub(channel).say(word)).value for word in words]


class Replica(EchoStub):
    """The echo service as a process, and a connection to it of its own."""

    def __init__(self, running: Service, address: str, channel: grpc.aio.Channel) -> None:
        super().__init__(channel)
        self.address = address
        self._pid = running.process.pid
        self._status = Path(f"/proc/{self._pid}/status")

    def memory(self, kind: str) -> int:
        """Bytes resident now (``VmRSS``), or the maximum so far (``VmHWM``)."""
        [line] = [line for line in self._status.read_text().splitlines() if line.startswith(kind)]
        return int(line.split()[1]) * 1024

    def reset_peak(self) -> int:
        """Begin a new maximum; returns what is resident now."""
        (self._status.parent / "clear_refs").write_text("5")
        return self.memory("VmRSS")

    def allow_files(self, more: int) -> None:
        """Leave it so many file descriptors."""
        limit = len(list(Path(f"/proc/{self._pid}/fd").iterdir())) + more
        resource.prlimit(self._pid, resource.RLIMIT_NOFILE, (limit, limit))

    async def held(self) -> int:
        """How many calls wait in it."""
        [answer] = [answer async for answer in self.count("how many")]
        return int(answer.value)


@asynccontextmanager
async def connection(address: str) -> AsyncIterator[grpc.aio.Channel]:
    """A connection of its own: channels of one process would share it."""
    own = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(address, options=own) as channel:
        yield channel


@asynccontextmanager
async def replica_with(**environment: str) -> AsyncIterator[Replica]:
    """A running replica with these variables."""
    async with echo_service(**environment) as running:
        address = await address_of(running)
        async with connection(address) as channel:
            yield Replica(running, address, channel)


if __name__ == "__main__":
    # The time limit is tested in ``test_exporting``.
    with (
        mock.patch.object(tracing, "stop", partial(tracing.stop, FLUSH_S)),
        mock.patch.object(service, "migrate", migrate),
    ):
        service.main(EchoSettings, build)
