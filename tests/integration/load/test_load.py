"""The load test as its users meet it, in little; and that it fails where it should."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from deploy.load import nginx
from deploy.load.books import charged_once
from deploy.local.gateway.ledger import Ledger
from deploy.local.gateway.wire import Cancel, Confirm
from deploy.local.plan import PROJECT
from tests.integration.load.stand_ins import Payments, Sale, serving
from tests.integration.local.test_runner import alive, descendants_of, free_base_port, wait_for

PATIENCE_S = 100.0
needs_nginx = pytest.mark.skipif(nginx.find() is None, reason="nginx is not installed")


class Run:
    """A load test that runs as a process of its own, with all its files in one directory."""

    def __init__(self, process: asyncio.subprocess.Process, output: Path, home: Path) -> None:
        self.process = process
        self.home = home
        self._output = output

    @property
    def output(self) -> str:
        return self._output.read_text()

    async def ended(self) -> int:
        return await asyncio.wait_for(self.process.wait(), PATIENCE_S)

    async def says(self, text: str) -> None:
        await asyncio.to_thread(
            wait_for, lambda: text in self.output or self.process.returncode is not None
        )
        assert text in self.output


@asynccontextmanager
async def load_test(home: Path, *arguments: object) -> AsyncIterator[Run]:
    (home / "tmp").mkdir()
    environment = {name: value for name, value in os.environ.items() if "TALLY_" not in name}
    with (home / "output").open("w") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "deploy.load", *map(str, arguments)),
            cwd=PROJECT,
            env=environment | {"TMPDIR": str(home / "tmp")},
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
@pytest.mark.parametrize("way", ["direct", pytest.param("nginx", marks=needs_nginx)])
async def test_everything_holds_on_a_stack_of_its_own(tmp_path: Path, way: str) -> None:
    options = ["--through-nginx"] if way == "nginx" else []
    size = ["--rounds", 20, "--users", 20, "--vus", 5, "--replicas", 2]
    async with load_test(
        tmp_path,
        *(*options, *size, "--base-port", free_base_port(), "--gateway-latency-ms", "100-500"),
    ) as run:
        await run.says("k6 confirm_once")
        started = descendants_of(run.process.pid)
        assert await run.ended() == 0, run.output

    lines = run.output.partition("Result\n")[2].splitlines()
    assert len(lines) == 8
    assert all(line.split()[0] == "ok" for line in lines)
    assert "20 keys of 20, 20 calls" in run.output
    assert "12 keys of 12, 12 calls" in run.output
    assert "invariants hold" in lines[-1]
    assert started
    wait_for(lambda: not any(alive(pid) for pid in started))
    assert not list((tmp_path / "tmp").iterdir())


def ready_file(home: Path, services: Mapping[str, Sequence[str]]) -> Path:
    file = home / "ready.json"
    file.write_text(json.dumps({"services": services}))
    return file


def everywhere(addresses: Sequence[str]) -> dict[str, Sequence[str]]:
    return dict.fromkeys(("balance", "coupon", "order", "payment"), addresses)


async def test_a_stack_that_runs_already_is_loaded_and_its_books_left_alone(tmp_path: Path) -> None:
    async with serving(Payments(), replicas=4) as addresses:
        target = ready_file(tmp_path, everywhere(addresses))
        async with load_test(
            tmp_path, "--against", target, "--rounds", 5, "--vus", 2, "--users", 0
        ) as run:
            assert await run.ended() == 0, run.output
    assert "5 paid, 20 refused as in progress, 0 as used" in run.output
    told = (
        "  skipped the gateway's record and the audit: not looked at, for no --data-dir was given"
    )
    assert told in run.output.splitlines()


async def test_control_several_payments_of_one_key_fail(tmp_path: Path) -> None:
    async with serving(Payments(careless=True), replicas=4) as addresses:
        target = ready_file(tmp_path, everywhere(addresses))
        async with load_test(
            tmp_path, "--against", target, "--rounds", 5, "--vus", 2, "--users", 0
        ) as run:
            assert await run.ended() == 1
    assert (
        "FAILED  confirm_once: every threshold: crossed: "
        "checks, confirmations_paid, "
        "rounds_with_a_rival_in_progress, rounds_with_exactly_one_success\n"
    ) in run.output
    # Its logs are kept, and it says where.
    (log,) = (tmp_path / "tmp").glob("*/load/confirm_once.log")
    assert run.output.endswith(f"error: the load test failed; logs are in {log.parent}\n")


async def test_control_duplicates_that_come_one_after_the_other_fail(tmp_path: Path) -> None:
    async with serving(Payments(serial=True), replicas=4) as addresses:
        target = ready_file(tmp_path, everywhere(addresses))
        async with load_test(
            tmp_path, "--against", target, "--rounds", 5, "--vus", 2, "--users", 0
        ) as run:
            assert await run.ended() == 1
    assert "crossed: rounds_with_a_rival_in_progress\n" in run.output


async def test_control_too_many_coupons_and_things_fail(tmp_path: Path) -> None:
    async with serving(Payments(), Sale()) as addresses:
        target = ready_file(tmp_path, everywhere(addresses))
        async with load_test(
            tmp_path, "--against", target, "--rounds", 0, "--users", 20, "--vus", 2
        ) as run:
            assert await run.ended() == 1
    assert "crossed: checks, coupons_issued, orders_paid, orders_placed\n" in run.output


async def test_an_attempt_that_was_put_back_is_made_anew_as_another_intent(tmp_path: Path) -> None:
    sale = Sale(put_back=2)
    async with serving(Payments(), sale) as addresses:
        target = ready_file(tmp_path, everywhere(addresses))
        async with load_test(
            *(tmp_path, "--against", target, "--rounds", 0, "--users", 1, "--put-back-max", 2)
        ) as run:
            assert await run.ended() == 0, run.output
    assert "1 orders paid, 2 attempts put back and made anew" in run.output
    assert len({attempt.order_id for attempt in sale.attempts}) == 1
    assert len({attempt.request_id for attempt in sale.attempts}) == 3
    assert len({attempt.payment_key for attempt in sale.attempts}) == 3


async def test_control_attempts_that_are_put_back_too_often_fail(tmp_path: Path) -> None:
    async with serving(Payments(), Sale(put_back=2)) as addresses:
        target = ready_file(tmp_path, everywhere(addresses))
        async with load_test(
            *(tmp_path, "--against", target, "--rounds", 0, "--users", 1, "--put-back-max", 1)
        ) as run:
            assert await run.ended() == 1
    assert "crossed: attempts_put_back\n" in run.output


async def test_control_calls_that_are_sent_again_too_often_fail(tmp_path: Path) -> None:
    async with serving(Payments(), Sale(stopping=1)) as addresses:
        target = ready_file(tmp_path, everywhere(addresses))
        async with load_test(*(tmp_path, "--against", target, "--rounds", 0, "--users", 1)) as run:
            assert await run.ended() == 1
    assert "crossed: calls_retried\n" in run.output


async def test_control_an_order_that_is_always_put_back_fails(tmp_path: Path) -> None:
    sale = Sale(put_back=1_000)
    async with serving(Payments(), sale) as addresses:
        target = ready_file(tmp_path, everywhere(addresses))
        async with load_test(tmp_path, "--against", target, "--rounds", 0, "--users", 1) as run:
            assert await run.ended() == 1
    assert "crossed: attempts_put_back, orders_paid, unexpected_answers\n" in run.output
    assert len(sale.attempts) == 5


async def test_control_nobody_there_fails(tmp_path: Path) -> None:
    async with serving(Payments()) as addresses:
        gone = everywhere(addresses)
    target = ready_file(tmp_path, gone)
    async with load_test(tmp_path, "--against", target, "--rounds", 1, "--users", 0) as run:
        assert await run.ended() == 1
    assert "rounds_played" in run.output.partition("crossed: ")[2]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
async def test_nothing_outlives_it(tmp_path: Path, number: signal.Signals) -> None:
    options = ["--through-nginx"] if nginx.find() else []
    async with serving(Payments(), replicas=2) as addresses:
        target = ready_file(tmp_path, everywhere(addresses))
        async with load_test(
            tmp_path, "--against", target, "--rounds", 1_000_000, "--users", 0, *options
        ) as run:
            await run.says("k6 confirm_once")
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
    ("arguments", "told"),
    [
        (["--rounds", "0", "--users", "0"], "error: rounds and users must be 0 or more"),
        (["--put-back-max", "-1"], "error: put-back-max and retried-max must be 0 or more"),
        (["--vus", "0"], "error: vus must be from 1 to 1000, not 0"),
        (["--gateway-latency-ms", "fast"], "error: gateway latency must be LOW-HIGH"),
        (["--against", "/nowhere.json"], "error: /nowhere.json: it names no address of balance"),
        (["--replicas", "0"], "error: replicas must be from 1 to 100, not 0"),
    ],
)
async def test_a_bad_option_is_refused_in_one_line(
    tmp_path: Path, arguments: list[str], told: str
) -> None:
    async with load_test(tmp_path, *arguments) as run:
        assert await run.ended() == 1
    assert run.output.startswith(told)
    assert run.output.count("\n") == 1
    assert not list((tmp_path / "tmp").iterdir())


@pytest.fixture
def gateway_record(tmp_path: Path) -> Iterator[tuple[Ledger, Path]]:
    file = tmp_path / "gateway.sqlite3"
    ledger = Ledger(file)
    for key in ("once_a_1", "once_a_2", "once_b_1", "onceXaX1"):
        ledger.confirm(Confirm(key, "order", 1000, "KRW"), f"{key}:confirm")
    yield ledger, file
    ledger.close()


def test_the_record_of_a_run_is_told_from_others(gateway_record: tuple[Ledger, Path]) -> None:
    _, file = gateway_record
    assert charged_once(file, "once_a_", 2).holds
    assert not charged_once(file, "once_a_", 3).holds


def test_a_second_call_at_the_gateway_is_seen(gateway_record: tuple[Ledger, Path]) -> None:
    ledger, file = gateway_record
    ledger.confirm(Confirm("once_a_2", "order", 1000, "KRW"), "once_a_2:confirm")
    found = charged_once(file, "once_a_", 2)
    assert not found.holds
    assert "once_a_2: 2 confirms, 0 cancels" in found.figure


def test_a_key_that_was_not_charged_is_seen(gateway_record: tuple[Ledger, Path]) -> None:
    ledger, file = gateway_record
    ledger.confirm(Confirm("decline_a_1", "order", 1000, "KRW"), "decline")
    assert not charged_once(file, "decline_a_", 1).holds


def test_a_charge_that_was_paid_back_counts_only_where_it_may(
    gateway_record: tuple[Ledger, Path],
) -> None:
    ledger, file = gateway_record
    ledger.cancel("once_a_2", Cancel("put back", None), "once_a_2:cancel")
    assert charged_once(file, "once_a_", 1, may_be_put_back=True).holds
    assert not charged_once(file, "once_a_", 2, may_be_put_back=True).holds
    assert not charged_once(file, "once_a_", 1).holds


def test_a_missing_record_is_no_good_record(tmp_path: Path) -> None:
    found = charged_once(tmp_path / "none.sqlite3", "once_a_", 0)
    assert not found.holds
    assert "cannot be read" in found.figure
