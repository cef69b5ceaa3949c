"""Runs a service as a process: ``python -m <service>`` serves, ``… migrate`` migrates.

SIGTERM or SIGINT ends serving: NOT_SERVING, then no new calls, then running calls end, then
connections close, then exit 0. A second signal ends the process at once. SIGUSR1 writes the tasks
and what they wait for to the log; SIGUSR2 writes where each thread is to stderr, even if the event
loop is blocked.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import inspect
import os
import platform
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, TypeAlias, TypeVar

import grpc
import structlog
import uvloop
from pydantic import SecretStr

from common import VERSION, failpoints, logs, tracing
from common.db.database import Database
from common.db.errors import (
    INSUFFICIENT_PRIVILEGE,
    Fault,
    classify,
    describe_failure,
    failure_of,
    sqlstate,
)
from common.db.idempotency import CLEAN_UP_INTERVAL_S, IdempotencyStore
from common.db.revisions import ForeignSchema
from common.db.server_settings import UnsuitableServer
from common.environment import SettingsError, source_of, unknown_names
from common.locking.redis import connection_problem
from common.metrics import BUILD, LOOP_LAG
from common.metrics_page import MetricsPage
from common.process_settings import Command
from common.rpc.health import Ready
from common.rpc.server import AddToServer, GrpcServer, PortTaken
from common.rpc.status import from_trailing
from common.settings import ServiceSettings, read
from common.task_dump import write_tasks
from common.tasks import PeriodicJob, run_periodic_jobs
from common.tls import UnusableCertificate
from common.urls import engine_url
from tally_client.rpc.addresses import split_host_port

S = TypeVar("S", bound=ServiceSettings)

FAILED: Final = 1
USAGE: Final = 2
LAG_INTERVAL_S: Final = 0.1

_log = structlog.stdlib.get_logger()


@dataclass(frozen=True, slots=True)
class Application:
    """What a service's wiring builds: its gRPC services, and its readiness probe."""

    services: Sequence[tuple[AddToServer, object]]
    """Each one's generated ``add_…_to_server`` and its servicer."""
    ready: Ready


Build: TypeAlias = Callable[[S], AbstractAsyncContextManager[Application]]


def main(settings_type: type[S], build: Build[S], argv: Sequence[str] | None = None) -> None:
    """A service's whole ``__main__``. Exit codes: 0 success, 1 failure, 2 wrong usage or setting.

    ``build`` opens what the service needs, with its background tasks, and closes it after the last
    call has ended.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments not in ([], ["migrate"]):
        sys.stderr.write(f"usage: python -m {settings_type.service}_service [migrate]\n")
        raise SystemExit(USAGE)
    command: Command = "migrate" if arguments else "serve"
    try:
        settings = read(settings_type, command)
        logs.configure(
            service=settings.service,
            replica=settings.replica,
            level=settings.log_level,
            output=settings.log_format,
            also=[tracing.log_ids],
        )
        for name in unknown_names(settings_type.service, settings_type.model_fields):
            # No refusal: an older release must start with the settings of a newer one.
            _log.warning("unknown setting", reason=f"{name}: there is no such setting")
        if command == "migrate":
            _run(settings, command, migrate(settings))
        else:
            failpoints.start(
                service=settings.service,
                replica=settings.replica,
                bind=settings.bind,
                urls=_urls(settings),
            )
            tracing.start(
                service=settings.service, replica=settings.replica, read_refusal=from_trailing
            )
            _run(settings, command, serve(settings, build))
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(USAGE) from None
    finally:
        # After the loop: sagas that are handed over create the last spans.
        tracing.stop()


def _urls(settings: ServiceSettings) -> list[str]:
    """The URLs among the settings: those of databases, of Redis and of the gateway."""
    values = {name: getattr(settings, name) for name in type(settings).model_fields}
    return [
        value.get_secret_value() if isinstance(value, SecretStr) else value
        for name, value in values.items()
        if name.endswith("_url")
    ]


def _run(settings: ServiceSettings, command: Command, work: Coroutine[None, None, None]) -> None:
    """Run ``work`` in the process's loop. A failure ends the process with one line."""
    try:
        uvloop.run(work)
    except SettingsError:
        raise
    except PortTaken as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(FAILED) from None
    except Exception as error:  # noqa: BLE001 - whatever it is, the process ends
        if command == "serve":
            _log.critical("failed", exc_info=True)
        sys.stderr.write(f"{_failure(settings, command, error)}\n")
        raise SystemExit(FAILED) from None
    if command == "migrate":
        _log.info("migrated")


def _failure(settings: ServiceSettings, command: Command, error: Exception) -> str:
    """What ended the process, in one line. It names the setting, if a setting is the cause."""
    refused = sqlstate(error) == INSUFFICIENT_PRIVILEGE or isinstance(
        error, ForeignSchema | UnsuitableServer
    )
    if command == "migrate" and (refused or classify(error) is Fault.CONNECTION):
        url = engine_url(settings.owner_database_url.get_secret_value())
        return (
            f"{source_of(settings.service, 'owner_database_url')}: {describe_failure(error, url)}"
        )
    first_line = (str(error).strip() or "no further text").splitlines()[0]
    reason = logs.masked(f"{type(error).__name__}: {first_line}")
    return f"{settings.service} could not {command}: {reason}"


def migrations_of(settings_type: type[ServiceSettings]) -> Path:
    """The folder of a service's migrations, which is beside its settings."""
    return Path(inspect.getfile(settings_type)).with_name("migrations")


async def migrate(settings: ServiceSettings) -> None:
    """Bring the service's database to this release's schema."""
    # Imported when it is needed: a replica that serves starts without Alembic.
    from common.db.migrations import migrate as migrate_database  # noqa: PLC0415

    url = settings.owner_database_url.get_secret_value()
    await migrate_database(url, migrations_of(type(settings)), wait_s=settings.migrate_wait_s)


def run_service_jobs(
    database: Database, idempotency: IdempotencyStore, *jobs: PeriodicJob
) -> AbstractAsyncContextManager[None]:
    """Run the jobs, and the clean-up of idempotency records, until the block ends."""
    clean_up = PeriodicJob(
        "clean_up_answers", CLEAN_UP_INTERVAL_S, partial(idempotency.clean_up, database)
    )
    return run_periodic_jobs(clean_up, *jobs, ready=database.checked, failure_of=failure_of)


async def serve(settings: S, build: Build[S], *, stop: asyncio.Event | None = None) -> None:
    """Serve until SIGTERM or SIGINT, or until ``stop`` is set if it is given."""
    stop = stop or _stop_on_signals()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, write_tasks)
    # Without the loop, which may be what hangs.
    faulthandler.register(signal.SIGUSR2, file=sys.__stderr__ or sys.stderr, all_threads=True)
    await _check_redis(settings)
    BUILD.info({"version": VERSION, "python": platform.python_version(), "grpc": grpc.__version__})
    page = _metrics_page(settings) if settings.metrics_port else None
    try:
        async with build(settings) as application:
            server = GrpcServer(settings, ready=application.ready)
            for add, servicer in application.services:
                server.mount(add, servicer)
            await server.start()
            _reduce_garbage_collection()
            measuring = asyncio.create_task(_measure_lag())
            try:
                await _first(stop.wait(), server.ended())
            finally:
                measuring.cancel()
                await server.drain()
    finally:
        if page is not None:
            page.close()


async def _measure_lag() -> None:
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + LAG_INTERVAL_S
        await asyncio.sleep(LAG_INTERVAL_S)
        LOOP_LAG.observe(max(0.0, loop.time() - due))


async def _check_redis(settings: ServiceSettings) -> None:
    """Warn once if Redis is away: readiness does not need it and would not report it.

    Raises SettingsError for an option of the URL that the client rejects.
    """
    url = settings.redis_url.get_secret_value()
    if not url:
        return
    setting = source_of(settings.service, "redis_url")
    try:
        problem = await connection_problem(url)
    except (TypeError, ValueError):
        raise SettingsError(f"{setting}: has an option that the client rejects") from None
    if problem:
        _log.warning("redis away", reason=logs.masked(f"{setting}: {problem}"))


def _reduce_garbage_collection() -> None:
    """Prevent long pauses of the garbage collector under load, in which every caller waits.

    What is loaded by now lives as long as the process: the collector no longer scans it. gRPC
    leaves a reference cycle of 8 objects per call, so one collection per 10,000 objects instead of
    700 is one per about 1,250 calls. Five times as many would hold 3 to 4 MB more, and spare no
    processor time that can be measured.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 20)


def _metrics_page(settings: ServiceSettings) -> MetricsPage:
    host = split_host_port(settings.bind)[0].strip("[]")
    tls_dir = Path(settings.tls_dir) if settings.tls_dir else None
    try:
        return MetricsPage(host, settings.metrics_port, tls_dir=tls_dir)
    except UnusableCertificate as error:
        raise SettingsError(f"{source_of(settings.service, 'tls_dir')}: {error}") from None
    except OSError:
        setting = source_of(settings.service, "metrics_port")
        raise PortTaken(setting, f"{host}:{settings.metrics_port}") from None


def _stop_on_signals() -> asyncio.Event:
    """An event that the first signal sets; the second one ends the process."""
    stop = asyncio.Event()

    def on_signal(number: int) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, on_signal, number)
    return stop


async def _first(*waits: Awaitable[object]) -> None:
    """Return when one of them returns; cancel the others."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task
