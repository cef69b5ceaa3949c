"""The gRPC health service, for load balancers and probes.

``""`` is readiness: NOT_SERVING at first, then as the probes of what the service needs find it.
``liveness`` is SERVING as long as the event loop runs: to restart a replica does not repair its
database.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final, TypeAlias

import structlog
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc

from common import metrics
from common.errors import Code, Refusal

NAME: Final = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
READINESS: Final = ""
LIVENESS: Final = "liveness"
PROBE_TIMEOUT_S: Final = 2.0
FAILURES_MAX: Final = 3
"""So many failed probes in a row make a replica that was ready NOT_SERVING. All replicas probe one
database: if a short pause of it took them all out, clients would have none left to wait at."""

SERVING: Final = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING: Final = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN: Final = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN

Ready: TypeAlias = Callable[[], Awaitable[None]]
"""Returns if the service can serve; raises, with the reason, if it cannot."""

_log = structlog.stdlib.get_logger()


class HealthServiceUnknown(Refusal, code=Code.NOT_FOUND, reason="HEALTH_SERVICE_UNKNOWN"):
    """There is no health under this name; ask for "" or "liveness"."""


class Health(health_pb2_grpc.HealthServicer):
    """The health servicer and its state."""

    def __init__(self) -> None:
        self._statuses = {READINESS: NOT_SERVING, LIVENESS: SERVING}
        self._changed = asyncio.Event()
        self._draining = False
        metrics.READY.set(0)

    @property
    def ready(self) -> bool:
        """Whether readiness is SERVING now."""
        return self._statuses[READINESS] == SERVING

    def drain(self) -> None:
        """Report NOT_SERVING from now on, whatever the probe finds."""
        self._draining = True
        self._set(ready=False)

    async def follow(self, ready: Ready, interval_s: float) -> None:
        """Probe for ever, and set readiness accordingly. A probe that hangs counts as failed.

        One success makes the replica ready, FAILURES_MAX failures in a row make it not ready.
        """
        last, failed = "", 0
        while True:
            problem = await _probe_problem(ready)
            failed = failed + 1 if problem else 0
            if self.ready and 0 < failed < FAILURES_MAX:
                _log.warning("readiness probe failed", reason=problem, in_a_row=failed)
            elif problem != last or self.ready == bool(problem):
                self._set(ready=not problem)
                if problem and not self._draining:
                    _log.warning("not ready", reason=problem)
                elif self.ready:
                    _log.info("ready")
                last = problem
            await asyncio.sleep(interval_s)

    async def Check(  # noqa: N802 - the method's name in the protocol
        self,
        request: health_pb2.HealthCheckRequest,
        context: object,  # noqa: ARG002
    ) -> health_pb2.HealthCheckResponse:
        status = self._statuses.get(request.service)
        if status is None:
            raise HealthServiceUnknown
        return health_pb2.HealthCheckResponse(status=status)

    async def List(self, request: object, context: object) -> Message:  # noqa: ARG002, N802
        statuses = {
            name: health_pb2.HealthCheckResponse(status=status)
            for name, status in self._statuses.items()
        }
        response: Message = health_pb2.HealthListResponse(  # type: ignore[attr-defined]
            statuses=statuses  # the method is newer than its type stubs
        )
        return response

    async def Watch(  # noqa: N802
        self,
        request: health_pb2.HealthCheckRequest,
        context: object,  # noqa: ARG002
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        sent = None
        while True:
            # The event is read before the status, so that no change in between is missed.
            changed = self._changed
            status = self._statuses.get(request.service, _UNKNOWN)
            if status != sent:
                yield health_pb2.HealthCheckResponse(status=status)
                sent = status
            await changed.wait()

    def _set(self, *, ready: bool) -> None:
        status = SERVING if ready and not self._draining else NOT_SERVING
        if self._statuses[READINESS] == status:
            return
        self._statuses[READINESS] = status
        metrics.READY.set(int(status == SERVING))
        self._changed.set()
        self._changed = asyncio.Event()


async def _probe_problem(ready: Ready) -> str:
    """Why the service cannot serve, or ''."""
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            await ready()
    except TimeoutError:
        return f"the probe took longer than {PROBE_TIMEOUT_S:g} s"
    except asyncio.CancelledError:
        if (task := asyncio.current_task()) and task.cancelling():
            raise
        # Something inside was cancelled, such as a driver's future, not the probing task.
        return "the probe was cancelled from within"
    except Exception as error:  # noqa: BLE001 - whatever it is, this replica cannot serve
        return str(error) or type(error).__name__
    return ""
