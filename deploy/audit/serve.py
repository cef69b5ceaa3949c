"""`python -m deploy.audit serve`: audits the books every hour, and every night in full.

One process does so for all databases. It only reads; a second one does no harm but load. SIGTERM
ends it, in the middle of an audit too; SIGHUP begins a full audit now, and SIGUSR1
writes to the log what it waits for.
"""

from __future__ import annotations

import asyncio
import contextlib
import platform
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import grpc
import structlog

from common import VERSION, logs
from common.environment import SettingsError, source_of, unknown_names
from common.metrics import BUILD
from common.metrics_page import MetricsPage
from common.settings import read
from common.task_dump import write_tasks
from common.tls import UnusableCertificate
from deploy.audit import metrics
from deploy.audit.checkpoint import Checkpoint
from deploy.audit.errors import CannotAudit
from deploy.audit.runs import Auditor
from deploy.audit.schedule import FULL, Schedule
from deploy.audit.settings import AuditSettings
from deploy.audit.sources import urls_of_settings
from tally_client.rpc.addresses import split_host_port

FAILED: Final = 1
USAGE: Final = 2

_log = structlog.stdlib.get_logger()


def main() -> None:
    """Serve until a signal. Exit codes: 0 stopped, 1 cannot begin, 2 a setting is wrong."""
    try:
        settings = read(AuditSettings)
        logs.configure(
            service=settings.service,
            replica=settings.replica,
            level=settings.log_level,
            output=settings.log_format,
        )
        for name in unknown_names(settings.service, AuditSettings.model_fields):
            _log.warning("unknown setting", reason=f"{name}: there is no such setting")
        if settings.production:
            _check_databases()
        checkpoint = _checkpoint(settings)
        with _metrics_page(settings):
            asyncio.run(serve(settings, checkpoint))
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(USAGE) from None


def _check_databases() -> None:
    """Raise SettingsError for an address that production does not accept.

    Each audit reads the addresses anew and checks them again. Elsewhere they may be set later.
    """
    try:
        urls_of_settings()
    except CannotAudit as error:
        raise SettingsError(str(error)) from None


def _checkpoint(settings: AuditSettings) -> Checkpoint:
    """The checkpoint, whose file can be written. Raises SettingsError."""
    checkpoint = Checkpoint(Path(settings.checkpoint))
    try:
        checkpoint.write(checkpoint.read())
    except OSError as error:
        name = source_of(settings.service, "checkpoint")
        raise SettingsError(f"{name}: cannot be written: {error.strerror}") from None
    return checkpoint


@contextlib.contextmanager
def _metrics_page(settings: AuditSettings) -> Iterator[None]:
    BUILD.info({"version": VERSION, "python": platform.python_version(), "grpc": grpc.__version__})
    host, port = split_host_port(settings.metrics_bind)
    tls_dir = Path(settings.tls_dir) if settings.tls_dir else None
    try:
        page = MetricsPage(host.strip("[]"), port, metrics.REGISTRY, tls_dir=tls_dir)
    except UnusableCertificate as error:
        raise SettingsError(f"{source_of(settings.service, 'tls_dir')}: {error}") from None
    except OSError:
        name = source_of(settings.service, "metrics_bind")
        sys.stderr.write(f"{name}: {settings.metrics_bind} is not free\n")
        raise SystemExit(FAILED) from None
    _log.info("audit_serving", metrics=f"{host}:{page.port}")
    try:
        yield
    finally:
        page.close()


async def serve(settings: AuditSettings, checkpoint: Checkpoint) -> None:
    """Audit whenever it is due, until SIGTERM or SIGINT."""
    auditor = Auditor(settings, checkpoint)
    schedule = Schedule.of(settings, auditor.memory)
    now = asyncio.Event()
    work = asyncio.create_task(_work(auditor, schedule, now))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, work.cancel)
    loop.add_signal_handler(signal.SIGHUP, now.set)
    loop.add_signal_handler(signal.SIGUSR1, write_tasks)
    # Whatever ends it otherwise is a defect, and ends the process.
    with contextlib.suppress(asyncio.CancelledError):
        await work
    _log.info("audit_stopped")


async def _work(auditor: Auditor, schedule: Schedule, now: asyncio.Event) -> None:
    while True:
        scope, wait_s = schedule.next()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(now.wait(), wait_s)
            now.clear()
            scope = FULL
        ended_well = await auditor.run(scope)
        schedule.ended(scope, well=ended_well)
