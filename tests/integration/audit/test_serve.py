"""The audit in production: what each verdict finds, remembers, exports and logs."""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import sys
from collections.abc import Callable, MutableMapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Final
from urllib.request import urlopen

import asyncpg
import pytest
from sqlalchemy.engine import make_url
from structlog.testing import capture_logs

from deploy.audit import metrics
from deploy.audit.checkpoint import Checkpoint
from deploy.audit.runs import Auditor
from deploy.audit.settings import AuditSettings
from deploy.audit.sources import SERVICES
from deploy.local.postgres_files import SUPERUSER
from tests.integration.audit.books import PAY_D, ledger_entry, uid
from tests.integration.audit.conftest import Books
from tests.support.programs import run_program

MARGIN_S: Final = 0.001
"""What a test does not change was made before: databases are copied between that and an audit."""
OLD: Final = "UPDATE accounts SET available_minor = available_minor - 1 WHERE user_id = 'ann'"
"""A breach in what is not touched: no time changes."""
NEW: Final = (
    ledger_entry("bob", (uid(98), 6, 5, 4_655), "CHARGE", "planted", None, None)
    + f"UPDATE ledger_entries SET create_time = clock_timestamp() WHERE entry_id = '{uid(98)}'"
)
"""A breach in what is touched: an entry that its account does not have."""


def environment(books: Books) -> dict[str, str]:
    return {f"TALLY_{name.upper()}_AUDIT_DATABASE_URL": url for name, url in books.urls.items()}


def sample(name: str, **labels: str) -> float | None:
    return metrics.REGISTRY.get_sample_value(name, labels)


@pytest.fixture
def make_auditor(
    books: Books, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Auditor]:
    for service in ("balance", "coupon", "order"):
        books.change(service, "SELECT 1")  # a copy, which the test may change
    for name, url in environment(books).items():
        monkeypatch.setenv(name, url)
    file = tmp_path / "checkpoint.json"

    def make(margin_s: float = MARGIN_S) -> Auditor:
        settings = AuditSettings(checkpoint=str(file), settle_s=0, longest_transaction_s=margin_s)
        return Auditor(settings, Checkpoint(file))

    return make


async def verdict(auditor: Auditor, scope: str) -> MutableMapping[str, Any]:
    """The line of the next verdict."""
    with capture_logs() as lines:
        assert await auditor.run(scope)
    [line] = [line for line in lines if line["event"] == "audit_verdict"]
    return line


async def test_recent_finds_what_was_touched_and_full_finds_both(
    books: Books, make_auditor: Callable[..., Auditor]
) -> None:
    auditor = make_auditor()
    line = await verdict(auditor, "full")
    assert (line["holds"], line["since"], line["log_level"]) == (True, None, "info")
    books.change("balance", OLD)
    line = await verdict(auditor, "recent")
    assert line["holds"], line
    snapshots = auditor.memory.full.snapshots if auditor.memory.full else {}
    margin = timedelta(seconds=MARGIN_S)
    assert line["since"] == {name: (time - margin).isoformat() for name, time in snapshots.items()}
    books.change("balance", NEW)
    line = await verdict(auditor, "recent")
    assert (line["holds"], line["log_level"]) == (False, "error")
    assert any("account of bob" in text for text in line["differences"])
    assert not any("account of ann" in text for text in line["differences"])
    line = await verdict(auditor, "full")
    assert {"I2"} <= {*line["broken"]}
    for user in ("ann", "bob"):
        assert any(f"account of {user}" in text for text in line["differences"])


async def test_late_commit_is_found(books: Books, make_auditor: Callable[..., Auditor]) -> None:
    """Its rows have a time before the full verdict, which could not see them."""
    auditor = make_auditor(300.0)
    server = books.server
    address = make_url(books.urls["balance"]).set(
        username=SUPERUSER, password=server.files.passwords[SUPERUSER]
    )
    late = await asyncpg.connect(address.render_as_string(hide_password=False))
    try:
        transaction = late.transaction()
        await transaction.start()
        await late.execute(NEW)
        assert (await verdict(auditor, "full"))["holds"]
        await transaction.commit()
    finally:
        await late.close()
    line = await verdict(auditor, "recent")
    assert any("account of bob" in text for text in line["differences"])
    # The control: without the margin, no recent audit sees it.
    assert (await verdict(make_auditor(0.001), "recent"))["holds"]


async def test_breach_of_the_last_full_verdict_is_exported_until_the_next(
    books: Books, make_auditor: Callable[..., Auditor]
) -> None:
    books.change("balance", OLD)
    auditor = make_auditor()
    line = await verdict(auditor, "full")
    assert sample("tally_audit_breaches") == line["breaches"] > 0
    assert (await verdict(auditor, "recent"))["holds"]
    assert sample("tally_audit_breaches") == line["breaches"]
    make_auditor()  # a restart
    assert sample("tally_audit_breaches") == line["breaches"]
    books.change("balance", OLD.replace("- 1", "+ 1"))
    assert (await verdict(auditor, "full"))["holds"]
    assert sample("tally_audit_breaches") == 0


async def test_what_stands_is_summed_and_new_cases_are_named_once(
    books: Books, make_auditor: Callable[..., Auditor]
) -> None:
    auditor = make_auditor()
    assert (await verdict(auditor, "full"))["new_standing"] == []
    books.change("order", _stands(PAY_D))
    line = await verdict(auditor, "full")
    assert line["holds"], line
    assert (line["standing"], len(line["new_standing"])) == (1, 1)
    assert "deduction of KRW 250" in line["new_standing"][0]
    assert sample("tally_audit_standing_minor", currency="KRW") == 250
    assert sample("tally_audit_new_standing") == 1
    line = await verdict(make_auditor(), "full")
    assert (line["standing"], line["new_standing"]) == (1, [])
    assert sample("tally_audit_new_standing") == 0


def _stands(saga_id: str) -> str:
    """The saga is resolved, and its deduction stands."""
    return f"""
UPDATE orders SET state = 'PENDING'
 WHERE order_id = (SELECT order_id FROM sagas WHERE saga_id = '{saga_id}');
UPDATE sagas SET state = 'RESOLVED', resolution_reason = 'why', failure = '{{"reason": "r"}}',
       steps = (SELECT jsonb_agg(CASE step ->> 'name' WHEN 'deduct_balance'
                    THEN step || '{{"state": "STANDING", "standing_minor": 250,
                                    "standing_reason": "agreed"}}'
                    WHEN 'complete_order' THEN step || '{{"state": "PENDING"}}'
                    ELSE step || '{{"state": "SKIPPED"}}' END)
                  FROM jsonb_array_elements(steps) AS step)
 WHERE saga_id = '{saga_id}';
INSERT INTO answers (method, scope, request_id, state, digest, body)
SELECT 'PayOrder', user_id, request_id, 'REFUSED', '', '{{"reason": "r"}}'
  FROM sagas WHERE saga_id = '{saga_id}';
"""


async def test_database_that_is_away_fails_the_run_and_nothing_else(
    books: Books, make_auditor: Callable[..., Auditor]
) -> None:
    auditor = make_auditor()
    await verdict(auditor, "full")
    completed = sample("tally_audit_completion_timestamp_seconds", scope="full")
    failed = sample("tally_audit_runs_total", scope="full", result="failed")
    assert completed and failed is not None
    name = make_url(books.urls["coupon"]).database
    books.server.run_sql(f'ALTER DATABASE "{name}" CONNECTION LIMIT 0')
    with capture_logs() as lines:
        assert not await auditor.run("full")
    [line] = lines
    assert (line["event"], line["log_level"]) == ("audit_failed", "warning")
    assert "the coupon database" in line["reason"]
    assert sample("tally_audit_runs_total", scope="full", result="failed") == failed + 1
    assert sample("tally_audit_completion_timestamp_seconds", scope="full") == completed
    started = sample("tally_audit_start_timestamp_seconds", scope="full")
    assert started and started > completed
    books.server.run_sql(f'ALTER DATABASE "{name}" CONNECTION LIMIT -1')
    assert (await verdict(auditor, "full"))["holds"]


async def test_full_verdict_covers_the_recent_and_outlives_a_restart(
    make_auditor: Callable[..., Auditor],
) -> None:
    auditor = make_auditor()
    unknown = sample("tally_audit_breaches")
    assert unknown is not None and math.isnan(unknown)  # and not 0: nothing was audited
    await verdict(auditor, "full")
    started = sample("tally_audit_start_timestamp_seconds", scope="full")
    completed = sample("tally_audit_completion_timestamp_seconds", scope="full")
    assert sample("tally_audit_completion_timestamp_seconds", scope="recent") == completed
    metrics.STARTED.clear()
    metrics.COMPLETED.clear()
    make_auditor()  # a restart
    assert sample("tally_audit_start_timestamp_seconds", scope="full") == started
    for scope in metrics.SCOPES:
        assert sample("tally_audit_completion_timestamp_seconds", scope=scope) == completed
    assert sample("tally_audit_breaches") == 0


async def test_what_stands_is_not_new_when_the_checkpoint_is_lost(
    books: Books, make_auditor: Callable[..., Auditor], tmp_path: Path
) -> None:
    books.change("order", _stands(PAY_D))
    for _ in range(2):
        line = await verdict(make_auditor(), "full")
        assert (line["first"], line["standing"], line["new_standing"]) == (True, 1, [])
        assert sample("tally_audit_new_standing") == 0
        (tmp_path / "checkpoint.json").unlink()


async def test_damaged_checkpoint_is_none(
    make_auditor: Callable[..., Auditor], tmp_path: Path
) -> None:
    (tmp_path / "checkpoint.json").write_text("{")
    with capture_logs() as lines:
        assert make_auditor().memory.full is None
    assert [line["event"] for line in lines] == ["audit_checkpoint_damaged"]


# -- the process -----------------------------------------------------------------------------------


@pytest.fixture
def serving_environment(books: Books, tmp_path: Path) -> dict[str, str]:
    known = {name: value for name, value in os.environ.items() if not name.startswith("TALLY_")}
    return known | {
        **environment(books),
        "TALLY_AUDIT_CHECKPOINT": str(tmp_path / "checkpoint.json"),
        "TALLY_AUDIT_METRICS_BIND": "127.0.0.1:0",
        "TALLY_AUDIT_SETTLE_S": "0",
    }


async def test_process_audits_exports_and_ends_at_sigterm(
    serving_environment: dict[str, str], books: Books, tmp_path: Path
) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "deploy.audit", "serve"),
        env=serving_environment,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    lines: list[dict[str, Any]] = []

    async def until(event: str) -> dict[str, Any]:
        assert process.stderr is not None
        while True:
            lines.append(json.loads(await process.stderr.readline()))
            if lines[-1]["event"] == event:
                return lines[-1]

    try:
        place = (await until("audit_serving"))["metrics"]
        assert (await until("audit_verdict"))["scope"] == "full"
        process.send_signal(signal.SIGUSR1)
        assert (await until("tasks_written"))["tasks"] > 0
        process.send_signal(signal.SIGHUP)
        assert (await until("audit_verdict"))["scope"] == "full"
        page = await asyncio.to_thread(lambda: urlopen(f"http://{place}/metrics").read().decode())
        assert 'tally_audit_runs_total{result="holds",scope="full"} 2.0' in page
        assert "tally_audit_breaches 0.0" in page
        assert "tally_build_info" in page
        assert "tally_ready" not in page
        process.terminate()
        await until("audit_stopped")
        assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert json.loads((tmp_path / "checkpoint.json").read_text())["full"]["breaches"] == 0
    everything = json.dumps(lines)
    for url in books.urls.values():
        assert str(make_url(url).password) not in everything


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("TALLY_AUDIT_CHECKPOINT", "", "TALLY_AUDIT_CHECKPOINT: needed to serve, not set\n"),
        (
            "TALLY_AUDIT_CHECKPOINT",
            "/proc/checkpoint.json",
            "TALLY_AUDIT_CHECKPOINT: cannot be written: ",
        ),
        ("TALLY_AUDIT_FULL_AT", "25:00", "TALLY_AUDIT_FULL_AT: "),
        ("TALLY_AUDIT_METRICS_BIND", "127.0.0.1", "TALLY_AUDIT_METRICS_BIND: "),
        ("TALLY_AUDIT_RECENT_INTERVAL_S", "0", "TALLY_AUDIT_RECENT_INTERVAL_S: "),
    ],
)
async def test_wrong_setting_ends_it_with_one_line(
    tmp_path: Path, name: str, value: str, error: str
) -> None:
    settings = {"TALLY_AUDIT_CHECKPOINT": str(tmp_path / "checkpoint.json")} | {name: value}
    code, _, found = await run_program("deploy.audit", "serve", **settings)
    assert code == 2
    assert found.startswith(error)
    assert found.count("\n") == 1


async def test_production_does_not_start_with_an_address_that_verifies_no_server(
    tmp_path: Path,
) -> None:
    url = "postgresql://u:hunter2@127.0.0.1:1/d"
    settings = {
        f"TALLY_{service.upper()}_AUDIT_DATABASE_URL": f"{url}?sslmode=verify-full"
        for service in SERVICES
    }
    settings |= {
        "TALLY_ORDER_AUDIT_DATABASE_URL": url,
        "TALLY_AUDIT_CHECKPOINT": str(tmp_path / "checkpoint.json"),
        "TALLY_PRODUCTION": "true",
    }
    code, _, found = await run_program("deploy.audit", "serve", **settings)
    assert (code, found.count("\n")) == (2, 1)
    assert found.startswith("TALLY_ORDER_AUDIT_DATABASE_URL: must end in ?sslmode=verify-full")
    assert "hunter2" not in found
