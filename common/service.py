"""Runs a service as a process: ``python -m <service>`` serves, ``… migrate`` migrates.

Serving ends on SIGTERM or SIGINT: NOT_SERVING, then no new calls, then what runs ends, then
connections close, then exit 0. A second signal ends the process at once.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import structlog
import uvloop

from common import logs, tracing
from common.addresses import split_host_port
from common.db.engines import Database
from common.db.errors import (
    INSUFFICIENT_PRIVILEGE,
    Fault,
    classify,
    describe_failure,
    is_unavailable,
    sqlstate,
)
from common.db.idempotency import CLEAN_UP_INTERVAL_S, IdempotencyStore
from common.db.revisions import ForeignSchema
from common.locking.redis import connection_problem
from common.metrics import MetricsPage
from common.rpc.server import GrpcServer, PortTaken
from common.settings import ServiceSettings, SettingsError, load, misspelt, source_of
from common.tasks import PeriodicJob, run_periodic_jobs
from common.urls import engine_url

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from common.rpc.health import Ready

S = TypeVar("S", bound=ServiceSettings)

FAILED: Final = 1
USAGE: Final = 2

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Mounted:
    """One gRPC service of a process: its generated ``add_…_to_server``, servicer and full name."""

    add: Callable[[Any, Any], None]
    servicer: object
    full_name: str


@dataclass(frozen=True, slots=True)
class Application:
    """What a service's wiring hands over to be served.

    ``ready`` returns while the service can serve and raises with the reason when it cannot.
    """

    services: Sequence[Mounted]
    ready: Ready


def main(
    settings_type: type[S],
    build: Callable[[S], AbstractAsyncContextManager[Application]],
    migrate: Callable[[S], Awaitable[None]],
    argv: Sequence[str] | None = None,
) -> None:
    """The whole of a service's ``__main__``. Ends the process: 0 well, 1 failed, 2 told wrongly.

    ``build`` opens what the service needs and closes it again after the last call has ended; tasks
    of its own belong inside it.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments not in ([], ["migrate"]):
        sys.stderr.write(f"usage: python -m {settings_type.service}_service [migrate]\n")
        raise SystemExit(USAGE)
    command = "migrate" if arguments else "serve"
    settings = load(settings_type, "migrate" if arguments else "serve")
    # Not for migrating, which calls nobody.
    with _usage():
        traced = not arguments and tracing.wanted()
    logs.configure(
        service=settings.service,
        replica=settings.replica,
        level=settings.log_level,
        output=settings.log_format,
        also=[tracing.log_ids()] if traced else [],
    )
    for line in misspelt(settings_type):
        # Not a refusal: going back to an older release must not need other settings first.
        _log.warning("unknown setting", reason=line)
    if traced:
        with _usage():
            tracing.begin(settings)
    try:
        uvloop.run(_migrate(settings, migrate) if arguments else serve(settings, build))
    except (SettingsError, PortTaken) as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(FAILED) from None
    except Exception as error:  # noqa: BLE001 - the process ends, and says why in one line
        if not arguments:
            _log.critical("failed", exc_info=True)
        sys.stderr.write(f"{_told(settings, command, error)}\n")
        raise SystemExit(FAILED) from None
    finally:
        # After the loop: sagas that are handed over make the last spans.
        tracing.end()


@contextmanager
def _usage() -> Iterator[None]:
    """As ``load``: what is wrong with a setting goes to stderr in one line and ends the process."""
    try:
        yield
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(USAGE) from None


def _told(settings: ServiceSettings, command: str, error: Exception) -> str:
    """What ended the process, in one line. Where a setting is to blame, it is named."""
    refused = sqlstate(error) == INSUFFICIENT_PRIVILEGE or isinstance(error, ForeignSchema)
    if command == "migrate" and (refused or classify(error) is Fault.CONNECTION):
        url = engine_url(settings.owner_database_url.get_secret_value())
        return f"{source_of(type(settings), 'owner_database_url')}: {describe_failure(error, url)}"
    first_line = (str(error).strip() or "no further text").splitlines()[0]
    told = logs.masked(f"{type(error).__name__}: {first_line}")
    return f"{settings.service} could not {command}: {told}"


def run_service_jobs(
    database: Database, idempotency: IdempotencyStore, *jobs: PeriodicJob
) -> AbstractAsyncContextManager[None]:
    """Run the jobs, and the clean-up of idempotency records, until the block ends."""
    clean_up = PeriodicJob(
        "clean_up_answers", CLEAN_UP_INTERVAL_S, partial(idempotency.clean_up, database)
    )
    return run_periodic_jobs(clean_up, *jobs, ready=database.checked, is_unavailable=is_unavailable)


async def serve(
    settings: S,
    build: Callable[[S], AbstractAsyncContextManager[Application]],
    *,
    stop: asyncio.Event | None = None,
) -> None:
    """Serves until a signal comes, or until ``stop`` is set where one is given."""
    stop = stop or _stop_on_signals()
    page: MetricsPage | None = None
    if settings.metrics_port:
        page = _metrics_page(settings)
    await _tell_of_redis(settings)
    try:
        async with build(settings) as application:
            server = GrpcServer(settings, ready=application.ready)
            for mounted in application.services:
                server.mount(mounted.add, mounted.servicer, mounted.full_name)
            await server.start()
            _settle_memory()
            try:
                await _first(stop.wait(), server.ended())
            finally:
                await server.drain()
    finally:
        if page is not None:
            page.close()


async def _tell_of_redis(settings: ServiceSettings) -> None:
    """Once, at the start: Redis is not needed to serve, so that nothing else would tell of it."""
    url = settings.redis_url.get_secret_value()
    if url and (reason := await connection_problem(url)):
        setting = source_of(type(settings), "redis_url")
        _log.warning("redis away", reason=logs.masked(f"{setting}: {reason}"))


def _settle_memory() -> None:
    """Keep the garbage collector from walking the whole program again and again under load.

    What is loaded by now stays for the process's life: it is taken out of the collector's sight.
    Calls make few reference cycles, so looking for them every 50,000 allocations instead of every
    700 costs little memory and saves pauses in which every caller waits.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 10, 20)


async def _migrate(settings: S, migrate: Callable[[S], Awaitable[None]]) -> None:
    await migrate(settings)
    _log.info("migrated")


def _metrics_page(settings: ServiceSettings) -> MetricsPage:
    host = split_host_port(settings.bind)[0].strip("[]")
    try:
        return MetricsPage(host, settings.metrics_port)
    except OSError:
        setting = source_of(type(settings), "metrics_port")
        raise PortTaken(setting, f"{host}:{settings.metrics_port}") from None


def _stop_on_signals() -> asyncio.Event:
    stop = asyncio.Event()

    def told(number: int) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told, number)
    return stop


async def _first(*waits: Awaitable[Any]) -> None:
    """Returns when one of them does; the others are cancelled."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task
