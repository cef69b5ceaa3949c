"""Probes as the kubelet makes them: with a new connection each time."""

from __future__ import annotations

import asyncio

import grpc
import httpx
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support.cluster.manifest import Probe

OPTIONS = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]


async def failure(probe: Probe, address: str) -> str:
    """Probe the pod at ``address``; returns '' if the probe passed, or why it failed."""
    try:
        async with asyncio.timeout(probe.timeout_s):
            return await _PROBES[probe.kind](probe, address)
    except TimeoutError:
        return f"no answer on port {probe.port} within {probe.timeout_s:g} s"


async def _grpc(probe: Probe, address: str) -> str:
    target = f"ipv4:{address}:{probe.port}"
    async with grpc.aio.insecure_channel(target, options=OPTIONS) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service=probe.service)
        try:
            response = await stub.Check(request)  # type: ignore[attr-defined] # set at run time
        except grpc.aio.AioRpcError as error:
            return f"port {probe.port}, service {probe.service!r}: {error.code().name}"
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)
    return "" if status == "SERVING" else f"service {probe.service!r} says {status}"


async def _tcp(probe: Probe, address: str) -> str:
    try:
        _, writer = await asyncio.open_connection(address, probe.port)
    except OSError as error:
        return f"port {probe.port}: {error.strerror}"
    writer.close()
    return ""


async def _http(probe: Probe, address: str) -> str:
    async with httpx.AsyncClient(trust_env=False) as client:
        try:
            response = await client.get(f"http://{address}:{probe.port}{probe.path}")
        except httpx.HTTPError as error:
            return f"port {probe.port}: {type(error).__name__}"
    passed = 200 <= response.status_code < 400
    return "" if passed else f"port {probe.port}, {probe.path}: status {response.status_code}"


_PROBES = {"grpc": _grpc, "tcpSocket": _tcp, "httpGet": _http}
