"""The gRPC health service: what this replica tells load balancers and probes.

``""`` is readiness: it begins as NOT_SERVING and follows a probe of what the service needs.
``liveness`` is SERVING for as long as the event loop runs: restarting a replica does not mend its
database.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc

from common import metrics
from common.errors import Code, Refusal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

READINESS: Final = ""
LIVENESS: Final = "liveness"
PROBE_TIMEOUT_S: Final = 2.0

SERVING: Final = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING: Final = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN: Final = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN

Ready = Callable[[], Awaitable[None]]
"""Returns when the service can serve, raises with the reason when it cannot."""

_log = structlog.get_logger(__name__)


class HealthServiceUnknown(Refusal):
    """No health is kept under this name; ask for "" or "liveness"."""

    code = Code.NOT_FOUND
    reason = "HEALTH_SERVICE_UNKNOWN"


class Health(health_pb2_grpc.HealthServicer):
    """The health service's servicer, with the state that it tells."""

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
        """NOT_SERVING from now on, whatever the probe says."""
        self._draining = True
        self._set(ready=False)

    async def follow(self, ready: Ready, interval_s: float) -> None:
        """Probes for ever and tells the result. A probe that hangs counts as a refusal."""
        last = ""
        while True:
            reason = await _reason_against(ready)
            if reason != last or self.ready == bool(reason):
                self._set(ready=not reason)
                if reason and not self._draining:
                    _log.warning("not ready", reason=reason)
                elif self.ready:
                    _log.info("ready")
                last = reason
            await asyncio.sleep(interval_s)

    async def Check(  # noqa: N802 - the method's name in the protocol
        self, request: health_pb2.HealthCheckRequest, context: Any
    ) -> health_pb2.HealthCheckResponse:
        del context
        status = self._statuses.get(request.service)
        if status is None:
            raise HealthServiceUnknown
        return health_pb2.HealthCheckResponse(status=status)

    async def List(  # noqa: N802
        self, request: object, context: Any
    ) -> Any:
        del request, context
        return health_pb2.HealthListResponse(  # type: ignore[attr-defined]  # newer than its stubs
            statuses={
                name: health_pb2.HealthCheckResponse(status=status)
                for name, status in self._statuses.items()
            }
        )

    async def Watch(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: Any
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        del context
        told = None
        while True:
            # The event is taken before the status: a change in between is then not missed.
            changed = self._changed
            status = self._statuses.get(request.service, _UNKNOWN)
            if status != told:
                yield health_pb2.HealthCheckResponse(status=status)
                told = status
            await changed.wait()

    def _set(self, *, ready: bool) -> None:
        status = SERVING if ready and not self._draining else NOT_SERVING
        if self._statuses[READINESS] == status:
            return
        self._statuses[READINESS] = status
        metrics.READY.set(int(status == SERVING))
        self._changed.set()
        self._changed = asyncio.Event()


async def _reason_against(ready: Ready) -> str:
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            await ready()
    except TimeoutError:
        return f"the probe took longer than {PROBE_TIMEOUT_S:g} s"
    except asyncio.CancelledError:
        if (task := asyncio.current_task()) and task.cancelling():
            raise
        # Of something inside, as a driver's future: nobody has asked for the end of probing.
        return "the probe was cancelled from within"
    except Exception as error:  # noqa: BLE001 - whatever it is, this replica cannot serve
        return str(error) or type(error).__name__
    return ""
