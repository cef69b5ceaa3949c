"""Methods paused by a file, while the server runs: whom it refuses, and whom it does not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from structlog.testing import capture_logs

from common import metrics
from common.errors import Code, RemoteRefusal
from common.rpc import pauses
from protos import service_config
from tests.integration.common.echo import (
    NAME,
    SAY,
    Echo,
    EchoStub,
    Held,
    Raising,
    client_of,
    connected,
    refusal_of,
)
from tests.support.waits import until_true

COUNT = f"/{NAME}/Count"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read the file without a pause."""
    monkeypatch.setattr(pauses, "INTERVAL_S", 0.001)


class PauseFile:
    """The file that the server reads."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, text: str) -> None:
        """Replace it as a whole: the server must not read a part."""
        new = self.path.with_suffix(".new")
        new.write_text(text)
        new.replace(self.path)

    def remove(self) -> None:
        self.path.unlink()

    def become_a_directory(self) -> None:
        self.path.unlink()
        self.path.mkdir()


@pytest.fixture
def file(tmp_path: Path) -> PauseFile:
    return PauseFile(tmp_path / "paused")


async def counted(request: StringValue, context: object) -> AsyncIterator[StringValue]:
    yield request


def gauge(name: str = "tally_paused_methods") -> float:
    value = metrics.REGISTRY.get_sample_value(name)
    assert value is not None
    return value


def assert_paused(refusal: RemoteRefusal) -> None:
    assert (refusal.code, refusal.reason) == (Code.UNAVAILABLE, "PAUSED")
    assert refusal.retry_after_s == 30.0


async def test_a_method_is_paused_and_resumed_while_the_server_runs(file: PauseFile) -> None:
    """The others are served, and a missing file pauses nothing."""
    with capture_logs() as logged:
        async with connected(Echo(None, counted), pause_file=str(file.path)) as client:
            assert (await client.say("1")).value == "1"
            file.write(f"# too many\n{NAME}/Say\n")
            await until_true(lambda: gauge() == 1)
            assert_paused(await refusal_of(client.say("2")))
            assert [each.value async for each in client.count("3")] == ["3"]
            file.write(NAME)
            await until_true(lambda: gauge() == 2)
            assert_paused(await refusal_of(client.count("4").read()))
            await client.check()
            file.remove()
            await until_true(lambda: gauge() == 0)
            assert (await client.say("5")).value == "5"
    told = [(line["event"], line.get("methods")) for line in logged if "methods" in line]
    assert told == [
        ("methods_paused", [SAY]),
        ("methods_paused", [COUNT, SAY]),
        ("methods_resumed", [COUNT, SAY]),
    ]
    assert not [line for line in logged if line["event"] == "call"]


async def test_a_server_that_starts_serves_no_paused_method(file: PauseFile) -> None:
    file.write(f"{NAME}/Say")
    echo = Echo()
    async with connected(echo, pause_file=str(file.path)) as client:
        assert_paused(await refusal_of(client.say()))
    assert echo.received == []


@pytest.mark.parametrize("content", [f"{NAME}/Say\n{NAME}/Sya", None], ids=["typo", "directory"])
async def test_what_was_paused_stays_so_after_a_file_that_is_rejected(
    file: PauseFile, content: str | None
) -> None:
    """It is logged once."""
    file.write(f"{NAME}/Count")
    with capture_logs() as logged:
        async with connected(pause_file=str(file.path)) as client:
            if content is None:
                file.become_a_directory()
            else:
                file.write(content)
            await until_true(lambda: any(line["event"] == "pause_file_rejected" for line in logged))
            await asyncio.sleep(0.05)
            assert gauge("tally_pause_file_rejected") == 1
            assert (await client.say("1")).value == "1"
            assert_paused(await refusal_of(client.count().read()))
    [line] = [line for line in logged if line["event"] == "pause_file_rejected"]
    assert (line["log_level"], line["file"]) == ("error", str(file.path))
    assert line["reason"] == (
        "Is a directory" if content is None else f"line 2: there is no {NAME}/Sya"
    )


async def test_calls_of_other_services_are_not_paused(file: PauseFile) -> None:
    """A saga that is in flight ends. The control is a call without the metadata."""
    file.write(NAME)
    async with connected(pause_file=str(file.path)) as client, client_of(client.address) as service:
        request = StringValue(value="7")
        reply = await service.call(service.stub.Say, request, limit_s=20.0, attempts_max=1)
        assert reply.value == "7"
        assert_paused(await refusal_of(client.say("7")))


async def test_a_call_that_runs_when_its_method_is_paused_ends(file: PauseFile) -> None:
    held = Held()
    async with connected(held, pause_file=str(file.path)) as client:
        call = asyncio.ensure_future(client.say("1"))
        await held.begun.wait()
        file.write(NAME)
        await until_true(lambda: gauge() == 2)
        held.release.set()
        assert (await call).value == "1"


async def test_a_channel_with_the_published_config_makes_one_attempt(file: PauseFile) -> None:
    """Although it retries UNAVAILABLE: the control is a refusal with a RetryInfo of 10 ms."""
    file.write(f"{NAME}/Say")
    policy = service_config._RETRY_POLICY
    config = json.dumps({"methodConfig": [{"name": [{}], "retryPolicy": policy}]})
    options = [("grpc.service_config", config)]
    async with connected(pause_file=str(file.path)) as client:
        attempts = _calls("PAUSED")
        async with grpc.aio.insecure_channel(client.address, options=options) as channel:
            assert_paused(await refusal_of(EchoStub(channel).say()))
        assert _calls("PAUSED") - attempts == 1
    away = RemoteRefusal(Code.UNAVAILABLE, "AWAY", "No.", {}, retry_after_s=0.01)
    async with connected(Raising(away, away)) as client:
        async with grpc.aio.insecure_channel(client.address, options=options) as channel:
            assert (await EchoStub(channel).say("1")).value == "1"
        assert _calls("AWAY") == 2


def _calls(reason: str) -> float:
    labels = {"method": SAY, "code": "UNAVAILABLE", "reason": reason}
    return metrics.REGISTRY.get_sample_value("tally_grpc_calls_total", labels) or 0.0
