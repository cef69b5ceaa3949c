"""The probe tells a replica's health by its exit code."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import grpc
import pytest
from grpc_health.v1 import health_pb2_grpc

from common.rpc import probe
from common.rpc.health import Health


@pytest.fixture
def health() -> Iterator[tuple[Health, str]]:
    """A health service on a loop of its own, as the probe blocks; not ready yet."""
    loop = asyncio.new_event_loop()
    made: dict[str, tuple[Health, str, grpc.aio.Server]] = {}

    async def start() -> None:
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        told = Health()
        health_pb2_grpc.add_HealthServicer_to_server(told, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        made["it"] = (told, f"127.0.0.1:{port}", server)

    loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    told, address, server = made["it"]
    try:
        yield told, address
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(None), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
        loop.close()


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine takes its time to answer."""
    monkeypatch.setattr(probe.status_of, "__defaults__", ("", 30.0))


def test_readiness_and_liveness_are_told(
    health: tuple[Health, str], capsys: pytest.CaptureFixture[str]
) -> None:
    _, address = health
    assert probe.main([address]) == 1
    assert probe.main([address, "liveness"]) == 0
    assert capsys.readouterr().out == "NOT_SERVING\nSERVING\n"


def test_a_health_nobody_keeps_is_a_failure(
    health: tuple[Health, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert probe.main([health[1], "nonesuch"]) == 1
    assert health[1] in capsys.readouterr().err


def test_nobody_there_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    assert probe.main(["127.0.0.1:1"]) == 1
    assert capsys.readouterr().err == "127.0.0.1:1: UNAVAILABLE\n"


@pytest.mark.parametrize("arguments", [[], ["nowhere"], ["127.0.0.1:1", "liveness", "more"]])
def test_a_wrong_call_is_told(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert probe.main(arguments) == 2
    assert capsys.readouterr().err
