"""The load test as a process of its own, with a small load; and that it fails when it should."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from deploy.load import nginx
from deploy.load.server_checks import charged_once
from deploy.local.gateway.ledger import Ledger
from deploy.local.gateway.wire import Cancel, Confirm
from deploy.local.plan import PROJECT, SERVICES
from tests.integration.load.stand_ins import Payments, Sale, serving
from tests.integration.local.test_runner import (
    alive,
    descendants_of,
    environment_without_tally,
    free_base_port,
    wait_for,
)

PATIENCE_S = 100.0
needs_nginx = pytest.mark.skipif(nginx.find() is None, reason="nginx is not installed")


class Run:
    """A running load test, with all its files in one directory."""

    def __init__(self, process: asyncio.subprocess.Process, output: Path, home: Path) -> None:
        self.process = process
        self.home = home
        self._output = output

    @property
    def output(self) -> str:
        return self._output.read_text()

    async def ended(self) -> int:
        return await asyncio.wait_for(self.process.wait(), PATIENCE_S)

    async def prints(self, text: str) -> None:
        await asyncio.to_thread(
            wait_for, lambda: text in self.output or self.process.returncode is not None
        )
        assert text in self.output


@asynccontextmanager
async def load_test(home: Path, *arguments: object) -> AsyncIterator[Run]:
    (home / "tmp").mkdir()
    with (home / "output").open("w") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "deploy.load", *map(str, arguments)),
            cwd=PROJECT,
            env=environment_without_tally() | {"TMPDIR": str(home / "tmp")},
            stdout=output,
            stderr=output,
        )
    try:
        yield Run(process, home / "output", home)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


@pytest.mark.timeout(240)
async def test_everything_holds_on_an_own_stack(tmp_path: Path) -> None:
    size = ["--rounds", 20, "--users", 20, "--vus", 5, "--replicas", 2]
    async with load_test(
        tmp_path, *size, "--base-port", free_base_port(), "--gateway-latency-ms", "100-500"
    ) as run:
        await run.prints("k6 confirm_once")
        started = descendants_of(run.process.pid)
        assert await run.ended() == 0, run.output

    lines = run.output.partition("Result\n")[2].splitlines()
    assert len(lines) == 8
    assert all(line.split()[0] == "ok" for line in lines)
    assert "20 keys of 20, 20 calls" in run.output
    assert "12 keys of 12, 12 calls" in run.output
    assert "every invariant holds" in lines[-1]
    assert started
    wait_for(lambda: not any(alive(pid) for pid in started))
    assert not list((tmp_path / "tmp").iterdir())


async def run_against(
    tmp_path: Path, *stand_ins: object, options: Sequence[object]
) -> tuple[int, str]:
    """The exit code and output of a load test on four servers of these stand-ins."""
    async with serving(*stand_ins, replicas=4) as addresses:
        target = ready_file(tmp_path, addresses)
        async with load_test(tmp_path, "--against", target, *options) as run:
            code = await run.ended()
    return code, run.output


def ready_file(home: Path, addresses: Sequence[str]) -> Path:
    """A ready file in which every service has these addresses."""
    file = home / "ready.json"
    file.write_text(json.dumps({"services": dict.fromkeys(SERVICES, addresses)}))
    return file


ROUNDS = ("--rounds", 5, "--vus", 2, "--users", 0)
ONE_USER = ("--rounds", 0, "--users", 1)


@pytest.mark.parametrize(
    "way", [(), pytest.param(("--through-nginx",), marks=needs_nginx)], ids=["direct", "nginx"]
)
async def test_running_stack_is_loaded_without_checks_of_its_books(
    tmp_path: Path, way: Sequence[str]
) -> None:
    code, output = await run_against(tmp_path, Payments(), options=(*ROUNDS, *way))
    assert code == 0, output
    assert "5 paid, 20 refused as in progress, 0 as used" in output
    skipped = (
        "  skipped the gateway's record and the audit: not checked, since no --data-dir was given"
    )
    assert skipped in output.splitlines()


async def test_compensated_attempt_is_made_again_as_another_intent(tmp_path: Path) -> None:
    sale = Sale(put_back=2)
    options = (*ONE_USER, "--put-back-max", 2)
    code, output = await run_against(tmp_path, sale, options=options)
    assert code == 0, output
    assert "1 orders paid, 2 attempts compensated and made again" in output
    assert len({attempt.order_id for attempt in sale.attempts}) == 1
    assert len({attempt.request_id for attempt in sale.attempts}) == 3
    assert len({attempt.payment_key for attempt in sale.attempts}) == 3


CONFIRMATIONS = "checks, confirmations_paid, rounds_with_a_rival_in_progress"
CROSSED: dict[str, tuple[list[object], Sequence[object], str]] = {
    "several payments of one key": (
        [Payments(careless=True)],
        ROUNDS,
        f"{CONFIRMATIONS}, rounds_with_exactly_one_success",
    ),
    "duplicates one after another": (
        [Payments(serial=True)],
        ROUNDS,
        "rounds_with_a_rival_in_progress",
    ),
    "too many coupons and products": (
        [Sale()],
        ("--rounds", 0, "--users", 20, "--vus", 2),
        "checks, coupons_issued, orders_paid, orders_placed",
    ),
}


@pytest.mark.parametrize("case", CROSSED)
async def test_control_crossed_threshold_fails(tmp_path: Path, case: str) -> None:
    stand_ins, options, crossed = CROSSED[case]
    code, output = await run_against(tmp_path, *stand_ins, options=options)
    assert code == 1
    assert f": every threshold: crossed: {crossed}\n" in output
    # The logs are kept, and the last line says where.
    (log,) = (tmp_path / "tmp").glob("*/load/*.log")
    assert output.endswith(f"error: the load test failed; logs are in {log.parent}\n")


async def test_control_retries_and_an_order_that_is_never_paid_fail(tmp_path: Path) -> None:
    sale = Sale(put_back=1_000, stopping=1)
    code, output = await run_against(tmp_path, sale, options=(*ONE_USER, "--retried-max", 0))
    assert code == 1
    crossed = "attempts_put_back, calls_retried, orders_paid, unexpected_answers"
    assert f"crossed: {crossed}\n" in output
    assert len(sale.attempts) == 5


async def test_control_no_server_fails(tmp_path: Path) -> None:
    async with serving(Payments()) as stopped:
        pass
    target = ready_file(tmp_path, stopped)
    async with load_test(tmp_path, "--against", target, "--rounds", 1, "--users", 0) as run:
        assert await run.ended() == 1
    assert "rounds_played" in run.output.partition("crossed: ")[2]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
async def test_no_process_survives_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    options = ["--through-nginx"] if nginx.find() else []
    async with serving(Payments(), replicas=2) as addresses:
        target = ready_file(tmp_path, addresses)
        async with load_test(
            tmp_path, "--against", target, "--rounds", 1_000_000, "--users", 0, *options
        ) as run:
            await run.prints("k6 confirm_once")
            k6_log = "tally-load-*/load/confirm_once.log"
            await asyncio.to_thread(wait_for, lambda: any((tmp_path / "tmp").glob(k6_log)))
            started = descendants_of(run.process.pid)
            assert started
            run.process.send_signal(number)
            code = await run.ended()
            await asyncio.to_thread(wait_for, lambda: not any(alive(pid) for pid in started))
    assert code == (130 if number != signal.SIGKILL else -signal.SIGKILL)
    assert number == signal.SIGKILL or not list((tmp_path / "tmp").iterdir())


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--rounds", "0", "--users", "0"], "error: rounds and users must be 0 or more"),
        (["--put-back-max", "-1"], "error: put-back-max and retried-max must be 0 or more"),
        (["--vus", "0"], "error: vus must be from 1 to 1000, not 0"),
        (["--gateway-latency-ms", "fast"], "error: gateway latency must be LOW-HIGH"),
        (["--against", "/nowhere.json"], "error: /nowhere.json: it names no address of balance"),
        (["--replicas", "0"], "error: replicas must be from 1 to 100, not 0"),
    ],
)
async def test_wrong_option_is_refused_in_one_line(
    tmp_path: Path, arguments: list[str], error: str
) -> None:
    async with load_test(tmp_path, *arguments) as run:
        assert await run.ended() == 1
    assert run.output.startswith(error)
    assert run.output.count("\n") == 1
    assert not list((tmp_path / "tmp").iterdir())


@pytest.fixture(scope="module")
def gateway_record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("record") / "gateway.sqlite3"
    with closing(Ledger(file)) as ledger:
        for key in ("once_a_1", "once_a_2", "once_b_1", "onceXaX1", "twice_1", "kept_1", "kept_2"):
            ledger.confirm(Confirm(key, "order", 1000, "KRW"), f"{key}:confirm")
        ledger.confirm(Confirm("twice_1", "order", 1000, "KRW"), "twice_1:confirm")
        ledger.confirm(Confirm("decline_1", "order", 1000, "KRW"), "decline")
        ledger.cancel("kept_2", Cancel("put back", None), "kept_2:cancel")
    return file


@pytest.mark.parametrize(
    ("prefix", "keys", "refunds_allowed", "wrong"),
    [
        # Only the keys of the run are checked.
        ("once_a_", 2, False, ""),
        ("once_a_", 3, False, "2 keys of 3"),
        ("twice_", 1, False, "twice_1: 2 confirms, 0 cancels"),
        ("decline_", 1, False, "not charged"),
        ("kept_", 1, True, ""),
        ("kept_", 2, True, "1 keys of 2"),
        ("kept_", 1, False, "kept_2: 1 confirms, 1 cancels"),
    ],
)
def test_each_key_is_charged_once(
    gateway_record: Path, prefix: str, keys: int, refunds_allowed: bool, wrong: str
) -> None:
    found = charged_once(gateway_record, prefix, keys, refunds_allowed=refunds_allowed)
    assert found.holds is not bool(wrong)
    assert wrong in found.figure


def test_a_missing_record_does_not_hold(tmp_path: Path) -> None:
    finding = charged_once(tmp_path / "none.sqlite3", "once_a_", 0)
    assert not finding.holds
    assert "cannot be read" in finding.figure
