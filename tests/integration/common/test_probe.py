"""The probe reports a replica's health by its exit code."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from common.rpc import probe
from tests.integration.common.echo import Probe, serving


@pytest.mark.parametrize(
    ("arguments", "code", "printed"),
    [
        (["{}"], 1, "NOT_SERVING\n"),
        (["{}", "liveness"], 0, "SERVING\n"),
        (["{}", "unknown"], 1, "{}: NOT_FOUND\n"),
        (["127.0.0.1:1"], 1, "127.0.0.1:1: UNAVAILABLE\n"),
        ([], 2, "usage: "),
        (["nowhere"], 2, "nowhere: must be host:port"),
        (["127.0.0.1:1", "liveness", "more"], 2, "usage: "),
    ],
)
async def test_the_health_is_printed_and_the_exit_code(
    arguments: list[str],
    code: int,
    printed: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # Long, for a slow machine.
    monkeypatch.setattr(probe.status_of, "__defaults__", ("", 30.0))
    with capture_logs():
        async with serving(ready=Probe("no database")) as (address, _):
            given = [each.format(address) for each in arguments]
            assert await asyncio.to_thread(probe.main, given) == code
    assert "".join(capsys.readouterr()).startswith(printed.format(address))
