"""A service as a process: what it logs, how it ends, and with which exit code."""

from __future__ import annotations

import json
import signal

import grpc
import httpx
import pytest

from common import service
from tests.integration.common.echo import EchoSettings, EchoStub
from tests.integration.common.echo_process import (
    PASSWORD,
    URL,
    address_of,
    build,
    echo_service,
    replies,
)
from tests.support.collector import ENDPOINT


async def test_a_service_drains_on_sigterm_and_exits_with_0() -> None:
    async with echo_service() as running:
        line = await running.line("listening")
        assert (line["service"], line["replica"]) == ("echo", "echo-1")
        assert line["timestamp"].endswith("Z")
        async with grpc.aio.insecure_channel(f"127.0.0.1:{line['port']}") as channel:
            call = EchoStub(channel).say("wait")
            await running.line("waiting")
            running.process.send_signal(signal.SIGTERM)
            await running.line("draining")
            assert (await call).value == "wait"
        status, log = await running.end()
    assert status == 0
    assert "closed" in log
    assert PASSWORD not in log
    assert "Traceback" not in log


async def test_a_second_signal_ends_the_process_at_once() -> None:
    async with echo_service(TALLY_DRAIN_DELAY_S="300") as running:
        await running.line("listening")
        running.process.send_signal(signal.SIGINT)
        await running.line("draining")
        running.process.send_signal(signal.SIGTERM)
        status, _ = await running.end()
    assert status == 128 + signal.SIGTERM


async def test_sigusr1_writes_what_the_tasks_wait_for_while_calls_are_served() -> None:
    async with echo_service() as running:
        async with grpc.aio.insecure_channel(await address_of(running)) as channel:
            stub = EchoStub(channel)
            held = stub.say("hold")
            while (await stub.count().read()).value != "1":
                pass
            running.process.send_signal(signal.SIGUSR1)
            summary = await running.line("tasks_written")
            lines = [json.loads(line) for line in running.lines]
            tasks = [line for line in lines if line["event"] == "task"]
            assert (await stub.say("loop")).value == "uvloop"
            await stub.count("release").read()
            assert (await held).value == "hold"
        status, _ = await running.stop()
    assert status == 0
    [call] = [task for task in tasks if task["task"].endswith("EchoService/Say]")]
    assert any("echo_process.py" in place for place in call["at"]), call
    assert summary["tasks"] == len(tasks) + summary["left_out"]


async def test_sigusr2_writes_where_a_blocked_event_loop_is() -> None:
    async with (
        echo_service() as running,
        grpc.aio.insecure_channel(await address_of(running)) as channel,
    ):
        call = EchoStub(channel).say("block")
        await running.line("blocking")
        running.process.send_signal(signal.SIGUSR2)
        await running.text("(most recent call first)")
        await running.text("echo_process.py")
        call.cancel()
        running.process.kill()


async def test_a_service_runs_on_uvloop_and_serves_metrics(unused_tcp_port: int) -> None:
    async with (
        echo_service(TALLY_METRICS_PORT=str(unused_tcp_port)) as running,
        httpx.AsyncClient() as client,
    ):
        assert await replies(running, "loop") == ["uvloop"]
        page = (await client.get(f"http://127.0.0.1:{unused_tcp_port}/metrics")).text
    assert (
        'tally_grpc_calls_total{code="OK",method="/tally.test.v1.EchoService/Say",reason=""} 1.0'
        in page
    )
    assert "tally_grpc_call_seconds_bucket" in page


async def test_migrate_that_fails_logs_one_line_without_the_password() -> None:
    """It is not traced: the variables of tracing are not read."""
    given = {ENDPOINT: "malformed", "TALLY_OWNER_DATABASE_URL": f"{URL}_fail"}
    async with echo_service("migrate", **given) as running:
        status, log = await running.end()
    assert status == service.FAILED
    expected = "echo could not migrate: RuntimeError: no answer from postgresql://u:***@"
    assert log.startswith(expected)
    assert log.count("\n") == 1
    assert PASSWORD not in log


@pytest.mark.parametrize(
    ("arguments", "environment", "expected"),
    [
        ([], {"TALLY_ECHO_POOL_SIZE": PASSWORD}, "TALLY_ECHO_POOL_SIZE: "),
        ([], {"TALLY_DATABASE_URL": ""}, "TALLY_DATABASE_URL: needed to serve, not set"),
        ([], {"TALLY_SECRETS_DIR": "/does/not/exist"}, "TALLY_SECRETS_DIR: "),
        ([], {ENDPOINT: "collector:4317"}, f"{ENDPOINT}: must be http"),
        (["migrate"], {}, "TALLY_ECHO_OWNER_DATABASE_URL: needed to migrate, not set"),
        (["migrat"], {}, "usage: "),
    ],
)
def test_wrong_usage_ends_the_process_with_2_and_one_line(
    arguments: list[str],
    environment: dict[str, str],
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In this process: ``tests/integration/start`` has the services' own."""
    for name, value in {"TALLY_DATABASE_URL": URL, **environment}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("common.logs.configure", lambda **_: None)
    with pytest.raises(SystemExit) as ended:
        service.main(EchoSettings, build, arguments)
    assert ended.value.code == service.USAGE
    log = capsys.readouterr().err
    assert log.startswith(expected)
    assert log.count("\n") == 1
    assert PASSWORD not in log
