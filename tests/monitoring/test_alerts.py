"""Alerts under real faults: each fires while its fault lasts, its page shows the fault, and it
resolves afterwards.

A real stack under light load, a real Prometheus, and the rules with seconds for minutes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from unittest import mock

import pytest
import pytest_asyncio

from deploy.local.plan import use_own_servers
from tests.faults.stack import FaultyStack
from tests.integration.local.test_runner import free_base_port
from tests.monitoring import money_faults, process_faults, row_faults
from tests.monitoring.exporters import POSTGRES, needs, postgres_exporter, postgres_job
from tests.monitoring.objectives import coupons_half_held
from tests.monitoring.runbooks import Runbooks
from tests.monitoring.scene import Fault, Scene, drill
from tests.monitoring.watched import Watched, audit_of, keep_buying
from tests.support.alert_rules import Scale, alternatives, shortened
from tests.support.prometheus import needs_prometheus, running_prometheus

pytestmark = [needs_prometheus, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(900)]

WITHOUT_FAULT: Final = {"TallyWatchdog"}
CLUSTER: Final = ""
"""Of a page whose commands are for a cluster."""
SETTINGS: Final = {
    "TALLY_ORDER_SAGA_ATTENTION_S": "5",
    "TALLY_ORDER_PAY_WITHIN_S": "3",
    # The books of the stack move: a difference of two looks that are this far apart is one.
    "TALLY_AUDIT_SETTLE_S": "10",
    # A verdict is overdue after two minutes instead of two hours.
    "TALLY_AUDIT_RECENT_INTERVAL_S": "60",
    "TALLY_AUDIT_RETRY_S": "10",
}
DRILLS: Final = [
    pytest.param(
        process_faults.without_redis,
        {"TallyRedisAbsent": r"redis_\w+_absent", "TallyQueueNotConsumed": "redis_"},
        id="Redis away",
    ),
    pytest.param(
        process_faults.replica_killed, {"TallyTargetDown": CLUSTER}, id="a replica killed"
    ),
    pytest.param(
        row_faults.account_held,
        {
            "TallyRetriesExhausted": r"DeductBalance'\} (?!0$)",
            "TallyLockWaitedLong": r"'service': 'balance'.*\} (?!0$)",
        },
        id="a session keeps a row",
    ),
    pytest.param(
        row_faults.campaign_held,
        {"TallyQueueAge": r"'partition': '\d'\} 1$"},
        id="a session keeps a campaign",
    ),
    pytest.param(
        row_faults.commits_slow,
        {"TallyLockHeldLong": "SyncRep", "TallyCallsSlow": "BalanceService/ChargeBalance"},
        id="COMMITs are slow",
    ),
    pytest.param(
        row_faults.ledger_locked,
        {"TallyPoolExhausted": r"Lock +\| relation"},
        id="a table is locked",
    ),
    pytest.param(
        row_faults.sagas_locked,
        {"TallySweepOverdue": "saga_sweep", "TallyStoredFiguresStale": "tally_active_sagas"},
        id="the table of sagas is locked",
    ),
    pytest.param(
        row_faults.locked_in_another_order,
        {"TallyDatabaseDeadlocks": "deadlock detected"},
        id="rows in another order",
    ),
    pytest.param(
        row_faults.saga_not_readable,
        {
            "TallyRowNotReadable": "row_not_readable",
            "TallyUnexpectedErrors": "SagaService/GetSaga.*unexpected error",
        },
        id="a saga of an unknown release",
    ),
    pytest.param(
        process_faults.process_throttled,
        {"TallyEventLoopLag": "'instance': 'coupon-0'"},
        id="a process is throttled",
    ),
    pytest.param(
        process_faults.pause_file_wrong,
        {"TallyPauseFileRejected": "CreateOrders.*pause_file_rejected"},
        id="a method is misspelt",
    ),
    pytest.param(
        process_faults.database_away,
        {"TallyServiceDown": CLUSTER, "TallyReplicaNotReady": CLUSTER},
        id="a database refuses its service",
    ),
    pytest.param(
        money_faults.refund_refused,
        {"TallyRefundOverdue": "refund_refused"},
        id="a refund is refused",
    ),
    pytest.param(
        money_faults.account_changed,
        {"TallyAuditBreach": "alerts:changed"},
        id="a balance changed by SQL",
    ),
    pytest.param(
        process_faults.without_gateway,
        {
            "TallyCircuitOpen": "circuit_opened|ClientConnectorError",
            "TallyPaymentOutcomeUnknown": "gateway_call",
        },
        id="the gateway away",
    ),
    pytest.param(
        money_faults.saga_closed,
        {"TallyResolvedSagaNotUndone": "STATE_RESOLVING"},
        id="a saga closed without gateway",
    ),
    pytest.param(
        money_faults.deduction_stands,
        {"TallyAuditNewStanding": "stand"},
        id="a deduction left to stand",
    ),
    pytest.param(
        process_faults.audit_stopped,
        {"TallyAuditNotRun": r"'instance': 'audit-0'.*\} 0$"},
        id="the audit hangs",
    ),
    pytest.param(
        process_faults.audit_refused,
        {"TallyAuditNotRun": "audit_failed"},
        id="the audit is refused",
    ),
    pytest.param(
        process_faults.balance_paused,
        {
            "TallyServiceDown": CLUSTER,
            "TallyTargetDown": CLUSTER,
            "TallyCompensationFailed": "saga_step_failed",
            "TallySagaNeedsAttention": "saga_needs_attention",
        },
        id="a service hangs",
    ),
    pytest.param(
        process_faults.server_away,
        {"TallyPostgresDown": "Connection refused"},
        id="PostgreSQL away",
        marks=needs(POSTGRES),
    ),
]
BURN_RATES: Final = [
    # Each share is below the limits of those that follow.
    ("TallyErrorBudgetBurnSlow", 1, 500),
    ("TallyErrorBudgetBurnSlow", 0, 200),
    ("TallyErrorBudgetBurnFast", 1, 100),
    ("TallyErrorBudgetBurnFast", 0, 10),
]
"""An alert, which of its pairs of windows, and the calls of which one fails."""
LOST_CALLS: Final = r"'code': 'DEADLINE_EXCEEDED'.*IssueCoupon'.*\} (?!0$|nan$)"


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    home = tmp_path_factory.mktemp("alerts")
    pause_file = home / "paused"
    with mock.patch.dict(os.environ), contextlib.ExitStack() as exits:
        use_own_servers(**SETTINGS, TALLY_PAUSE_FILE=str(pause_file))
        stack = exits.enter_context(FaultyStack(home / "data", free_base_port()))
        audit = exits.enter_context(audit_of(stack))
        jobs: list[Mapping[str, Any]] = []
        if shutil.which(POSTGRES):
            exporter = postgres_exporter(stack.postgres, home / "exporter")
            jobs.append(postgres_job(primary=exits.enter_context(exporter)))
        pages = stack.plan.metrics_pages(audit=True)
        prometheus = exits.enter_context(
            running_prometheus(
                pages, home / "prometheus", rules=shortened(home / "rules"), jobs=jobs
            )
        )
        other = exits.enter_context(
            running_prometheus(pages, home / "objectives", rules=objectives_of(home))
        )
        place = stack.plan.data_dir, stack.plan.base_port
        yield Watched(
            prometheus=prometheus,
            runbooks=Runbooks(home / "project", *place, prometheus),
            filled_in={"<service>": "balance", "<work>": "saga_sweep"},
            stack=stack,
            audit=audit,
            pause_file=pause_file,
            objectives=Scene(
                prometheus=other,
                runbooks=Runbooks(home / "same", *place, other),
                filled_in={"<service>": "coupon"},
            ),
        )


def objectives_of(home: Path) -> Path:
    """The rules of the objectives: six hours are a minute."""
    return shortened(home / "rules-of-objectives", Scale(360, 5), files="slo.yaml")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def watched(started: Watched) -> AsyncIterator[Watched]:
    buying = asyncio.create_task(keep_buying(started))
    yield started
    buying.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await buying


async def test_healthy_stack_fires_only_the_watchdog(watched: Watched) -> None:
    await watched.until(lambda firing: "TallyWatchdog" in firing)
    # Longer than the longest shortened `for` of what has to be there from the start.
    await asyncio.sleep(17.0)
    # What the start of so many processes made fire has resolved by then, or does soon.
    assert await watched.until(WITHOUT_FAULT.__eq__) == WITHOUT_FAULT


async def test_each_pair_of_windows_sees_its_share_of_failed_calls(
    watched: Watched, tmp_path: Path
) -> None:
    scene, rules = watched.objectives, objectives_of(tmp_path)
    pairs = [(alert, alternatives(rules, alert)[pair]) for alert, pair, _ in BURN_RATES]
    names = {alert for alert, _ in pairs}
    assert names & await scene.until(names.isdisjoint) == set()
    async with coupons_half_held(watched) as shares:
        for number, (alert, pair) in enumerate(pairs):
            shares.fails_one_of = BURN_RATES[number][2]
            assert await scene.until_holds(pair), pair
            assert alert in await scene.until({alert}.issubset)
            for _, later in pairs[number + 1 :]:
                assert scene.prometheus.now(later) == []
            shown = await scene.runbooks.until_shown(alert, LOST_CALLS, scene.filled_in)
            assert re.search(LOST_CALLS, shown, re.MULTILINE), shown
    assert names & await scene.until(names.isdisjoint) == set()


@pytest.mark.parametrize(("fault", "alerts"), DRILLS)
async def test_alerts_fire_and_resolve(
    watched: Watched, fault: Fault[Watched], alerts: Mapping[str, str]
) -> None:
    await drill(watched, fault, alerts)
