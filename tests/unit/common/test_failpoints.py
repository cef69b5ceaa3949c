"""What failpoints do when they are off, armed, fired, and where they are refused."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from common import failpoints
from common.environment import SettingsError
from common.failpoints import Action, Armed, arm, fired, reached

LOOPBACK = "127.0.0.1:50051"
URL = "postgresql://u:p@127.0.0.1:5432/tally_balance"


@pytest.fixture(autouse=True)
def off(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    yield
    failpoints.enabled = False
    failpoints._Place.reached.clear()


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(failpoints.VARIABLE, str(tmp_path))
    start()
    return tmp_path


def start(bind: str = LOOPBACK, *urls: str) -> None:
    failpoints.start(service="order", replica="order-1", bind=bind, urls=urls or (URL, ""))


def test_failpoints_are_off_without_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(failpoints.VARIABLE, raising=False)
    start("0.0.0.0:50051")
    assert not failpoints.enabled


@pytest.mark.parametrize(
    ("bind", "urls"),
    [
        ("0.0.0.0:50051", [URL]),
        ("[::]:50051", [URL]),
        ("10.0.0.7:50051", [URL]),
        ("balance:50051", [URL]),
        (LOOPBACK, [f"{URL}?sslmode=require"]),
        (LOOPBACK, [f"{URL}?sslmode=prefer"]),
        (LOOPBACK, [URL, "rediss://127.0.0.1:6379"]),
        (LOOPBACK, [URL, "https://gateway.example"]),
    ],
)
def test_failpoints_are_refused_where_others_could_connect(
    bind: str, urls: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(failpoints.VARIABLE, str(tmp_path))
    with pytest.raises(SettingsError, match=failpoints.VARIABLE):
        start(bind, *urls)
    assert not failpoints.enabled


@pytest.mark.parametrize("bind", [LOOPBACK, "[::1]:0", "localhost:50051"])
def test_failpoints_are_accepted_on_loopback(
    bind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(failpoints.VARIABLE, str(tmp_path))
    start(bind, f"{URL}?sslmode=disable", "redis://127.0.0.1:6379")
    assert failpoints.enabled


@pytest.mark.parametrize("process", ["", "order", "order-1"])
def test_an_armed_failpoint_fires_once_and_is_recorded(directory: Path, process: str) -> None:
    arm(directory, Armed("here", Action.ERROR, process))
    with pytest.raises(ConnectionResetError):
        failpoints.hit("here")
    failpoints.hit("here")
    assert [(one.name, one.action, one.replica) for one in fired(directory)] == [
        ("here", Action.ERROR, "order-1")
    ]


@pytest.mark.parametrize("process", ["order-0", "payment"])
def test_a_failpoint_armed_for_another_process_stays_armed(directory: Path, process: str) -> None:
    arm(directory, Armed("here", Action.ERROR, process))
    failpoints.hit("here")
    assert fired(directory) == []
    assert (directory / "armed" / "here").exists()


def test_a_place_that_is_passed_is_recorded(directory: Path) -> None:
    failpoints.hit("here")
    assert reached(directory) == {"here"}


def test_an_error_is_the_one_that_the_place_names(directory: Path) -> None:
    arm(directory, Armed("here", Action.ERROR))
    with pytest.raises(TimeoutError):
        failpoints.hit("here", TimeoutError)


async def test_a_cancellation_ends_the_task(directory: Path) -> None:
    async def work() -> None:
        failpoints.hit("here")

    arm(directory, Armed("here", Action.CANCEL))
    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(work())


def test_a_kill_is_recorded_before_the_process_dies(tmp_path: Path) -> None:
    arm(tmp_path, Armed("here", Action.KILL, "order"))
    program = f"""
        from common import failpoints
        failpoints.start(service="order", replica="order-1", bind="{LOOPBACK}", urls=[])
        failpoints.hit("here")
        print("survived")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={failpoints.VARIABLE: str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (-9, ""), done.stderr
    assert [(one.name, one.action) for one in fired(tmp_path)] == [("here", Action.KILL)]


def test_a_pause_blocks_for_the_time_that_was_armed(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    arm(directory, Armed("here", Action.PAUSE, pause_s=2.5))
    failpoints.hit("here")
    assert slept == [2.5]
