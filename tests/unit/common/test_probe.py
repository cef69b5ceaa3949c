"""The probe reports a replica's health by its exit code."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest
from grpc_health.v1 import health_pb2_grpc

from common.rpc import probe
from common.rpc.health import Health


@pytest.fixture(autouse=True)
def _long_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a slow machine."""
    monkeypatch.setattr(probe.status_of, "__defaults__", ("", 30.0))


@pytest.fixture
async def address() -> AsyncIterator[str]:
    """A health service that is not ready."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    health_pb2_grpc.add_HealthServicer_to_server(Health(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(None)


async def run(*arguments: str) -> int:
    return await asyncio.to_thread(probe.main, arguments)


async def test_readiness_and_liveness_are_reported(
    address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await run(address) == 1
    assert await run(address, "liveness") == 0
    assert capsys.readouterr().out == "NOT_SERVING\nSERVING\n"


async def test_an_unknown_service_is_a_failure(
    address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await run(address, "unknown") == 1
    assert address in capsys.readouterr().err


def test_no_reply_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    assert probe.main(["127.0.0.1:1"]) == 1
    assert capsys.readouterr().err == "127.0.0.1:1: UNAVAILABLE\n"


@pytest.mark.parametrize("arguments", [[], ["nowhere"], ["127.0.0.1:1", "liveness", "more"]])
def test_wrong_arguments_are_reported(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert probe.main(arguments) == 2
    assert capsys.readouterr().err
