"""The echo service as a process of its own, for the tests of ``common.runtime``."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import structlog

from common.runtime import Application, main
from tests.integration.common.echo import Echo, EchoSettings, application

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from google.protobuf.wrappers_pb2 import StringValue

log = structlog.get_logger("echo")


async def say(request: StringValue, context: Any) -> StringValue:
    if request.value == "wait":
        log.info("waiting")
        await asyncio.sleep(0.2)
    return request


@asynccontextmanager
async def build(settings: EchoSettings) -> AsyncIterator[Application]:
    log.info("building", database=settings.database_url.get_secret_value())
    yield application(Echo(say))
    log.info("closed")


async def migrate(settings: EchoSettings) -> None:
    url = settings.owner_database_url.get_secret_value()
    if url.endswith("fail"):
        raise RuntimeError(f"no answer from {url}\nand a second line")


if __name__ == "__main__":
    main(EchoSettings, build, migrate)
