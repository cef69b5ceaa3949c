"""The echo service as a process of its own, for the tests of ``common.service``."""

from __future__ import annotations

import asyncio
import sys
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any
from unittest import mock

import structlog
from google.protobuf.wrappers_pb2 import StringValue

from common import tracing
from common.service import Application, main
from tests.integration.common.echo import Echo, EchoSettings, application
from tests.support.patience import LONG_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

log = structlog.get_logger("echo")


class Held:
    """Calls of ``hold`` wait for ``release``, which comes by a stream: streams count apart."""

    def __init__(self) -> None:
        self._released = asyncio.Event()
        self._holding = 0

    async def say(self, request: StringValue, context: Any) -> StringValue:
        if request.value == "wait":
            log.info("waiting")
            await asyncio.sleep(0.2)
        elif request.value == "hold":
            self._holding += 1
            await self._released.wait()
        elif request.value == "loop":
            return StringValue(value=type(asyncio.get_running_loop()).__module__)
        elif request.value == "modules":
            return StringValue(value="on" if "opentelemetry" in sys.modules else "off")
        return request

    async def count(self, request: StringValue, context: Any) -> AsyncIterator[StringValue]:
        """How many are held; then, if asked to, lets them go."""
        yield StringValue(value=str(self._holding))
        if request.value == "release":
            self._released.set()


@asynccontextmanager
async def build(settings: EchoSettings) -> AsyncIterator[Application]:
    log.info("building", database=settings.database_url.get_secret_value())
    held = Held()
    yield application(Echo(held.say, held.count))
    log.info("closed")


async def migrate(settings: EchoSettings) -> None:
    url = settings.owner_database_url.get_secret_value()
    if url.endswith("fail"):
        raise RuntimeError(f"no answer from {url}\nand a second line")


if __name__ == "__main__":
    # What the limit does is tested where it is the subject.
    with mock.patch.object(tracing, "end", partial(tracing.end, LONG_S)):
        main(EchoSettings, build, migrate)
