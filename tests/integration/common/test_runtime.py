"""A service as a process: what it says, how it ends, and with which status."""

from __future__ import annotations

import signal
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import grpc
import httpx
import pytest
from google.protobuf.wrappers_pb2 import StringValue

from tests.integration.common.echo import EchoStub, serving
from tests.integration.start.process import Service, process

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PASSWORD = "hunter2"
URL = f"postgresql://u:{PASSWORD}@127.0.0.1:1/tally"


@asynccontextmanager
async def service(*arguments: str, **environment: str) -> AsyncIterator[Service]:
    given = {"TALLY_DATABASE_URL": URL, **environment}
    async with process("tests.integration.common.echo_process", *arguments, **given) as started:
        yield started


async def test_a_service_drains_and_ends_well_on_sigterm() -> None:
    async with service(TALLY_REPLICA="echo-1") as running:
        told = await running.line("listening")
        assert (told["service"], told["replica"]) == ("echo", "echo-1")
        assert told["timestamp"].endswith("Z")
        async with grpc.aio.insecure_channel(f"127.0.0.1:{told['port']}") as channel:
            call = EchoStub(channel).Say(StringValue(value="wait"))
            await running.line("waiting")
            running.process.send_signal(signal.SIGTERM)
            await running.line("draining")
            assert (await call).value == "wait"
        status, log = await running.end()
    assert status == 0
    assert "closed" in log
    assert PASSWORD not in log
    assert "Traceback" not in log


async def test_a_service_runs_on_uvloop() -> None:
    async with service() as running:
        port = (await running.line("listening"))["port"]
        await running.line("ready")
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            assert (await EchoStub(channel).Say(StringValue(value="loop"))).value == "uvloop"


async def test_a_second_signal_ends_the_process_at_once() -> None:
    async with service(TALLY_DRAIN_DELAY_S="300") as running:
        await running.line("listening")
        running.process.send_signal(signal.SIGINT)
        await running.line("draining")
        running.process.send_signal(signal.SIGTERM)
        status, _ = await running.end()
    assert status == 128 + signal.SIGTERM


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"TALLY_ECHO_POOL_SIZE": PASSWORD}, "TALLY_ECHO_POOL_SIZE: "),
        ({"TALLY_POOL_SIZE": "3"}, "TALLY_POOL_SIZE: "),
        ({"TALLY_DATABASE_URL": f"mysql://u:{PASSWORD}@h/d"}, "TALLY_DATABASE_URL: "),
        ({"TALLY_DATABASE_URL": ""}, "TALLY_DATABASE_URL: needed to serve, not set"),
        ({"TALLY_BIND": "nowhere"}, "TALLY_BIND: "),
        ({"TALLY_SECRETS_DIR": "/does/not/exist"}, "TALLY_SECRETS_DIR: "),
    ],
)
async def test_a_wrong_setting_ends_the_process_with_one_line(
    environment: dict[str, str], expected: str
) -> None:
    async with service(**environment) as running:
        status, told = await running.end()
    assert status == 2
    assert told.startswith(expected)
    assert told.count("\n") == 1
    assert PASSWORD not in told


async def test_a_taken_port_ends_the_process_with_one_line() -> None:
    async with serving() as (address, _), service(TALLY_BIND=address) as running:
        status, told = await running.end()
    assert status == 1
    taken = f"TALLY_BIND: cannot listen on {address}: Address already in use"
    assert told.splitlines()[-1] == taken
    assert "Traceback" not in told
    assert PASSWORD not in told


async def test_migrate_migrates_and_ends() -> None:
    async with service("migrate", TALLY_OWNER_DATABASE_URL=URL) as running:
        status, told = await running.end()
    assert status == 0
    assert '"migrated"' in told


async def test_migrate_that_fails_says_why_in_one_line_without_the_password() -> None:
    url = URL + "_fail"
    async with service("migrate", TALLY_OWNER_DATABASE_URL=url) as running:
        status, told = await running.end()
    assert status == 1
    assert told.startswith(
        "echo could not migrate: RuntimeError: no answer from postgresql://u:***@"
    )
    assert told.count("\n") == 1
    assert PASSWORD not in told


async def test_migrate_needs_the_owners_url() -> None:
    async with service("migrate") as running:
        status, told = await running.end()
    assert status == 2
    assert told == "TALLY_ECHO_OWNER_DATABASE_URL: needed to migrate, not set\n"


async def test_an_unknown_command_is_told_how_to_use_it() -> None:
    async with service("migrat") as running:
        status, told = await running.end()
    assert status == 2
    assert told.startswith("usage: ")


async def test_metrics_are_served_on_their_own_port(unused_tcp_port: int) -> None:
    async with service(TALLY_METRICS_PORT=str(unused_tcp_port)) as running:
        told = await running.line("listening")
        async with grpc.aio.insecure_channel(f"127.0.0.1:{told['port']}") as channel:
            await EchoStub(channel).Say(StringValue(value="hello"))
        async with httpx.AsyncClient() as client:
            page = (await client.get(f"http://127.0.0.1:{unused_tcp_port}/metrics")).text
    assert 'tally_grpc_calls_total{code="OK",method="/tally.test.v1.EchoService/Say"} 1.0' in page
    assert "tally_grpc_call_seconds_bucket" in page
