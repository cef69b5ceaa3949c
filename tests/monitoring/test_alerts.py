"""Alerts under real faults: each fires while its fault lasts, and resolves afterwards.

A real stack under light load, a real Prometheus, and the rules with seconds for minutes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from typing import Final
from unittest import mock

import pytest
import pytest_asyncio

from deploy.local.plan import use_own_servers
from tests.faults.stack import FaultyStack
from tests.integration.local.test_runner import free_base_port
from tests.monitoring import money_faults, process_faults, row_faults
from tests.monitoring.watched import Fault, Watched, audit_of, keep_buying
from tests.support.alert_rules import shortened
from tests.support.prometheus import needs_prometheus, running_prometheus

pytestmark = [needs_prometheus, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

WITHOUT_FAULT: Final = {"TallyWatchdog"}
SETTINGS: Final = {
    "TALLY_ORDER_SAGA_ATTENTION_S": "5",
    "TALLY_ORDER_PAY_WITHIN_S": "3",
    # The books of the stack move: a difference of two looks that are this far apart is one.
    "TALLY_AUDIT_SETTLE_S": "10",
}


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    home = tmp_path_factory.mktemp("alerts")
    pause_file = home / "paused"
    with mock.patch.dict(os.environ), contextlib.ExitStack() as exits:
        use_own_servers(**SETTINGS, TALLY_PAUSE_FILE=str(pause_file))
        stack = exits.enter_context(FaultyStack(home / "data", free_base_port()))
        audit = exits.enter_context(audit_of(stack, home))
        rules = shortened(home / "rules")
        prometheus = exits.enter_context(
            running_prometheus(stack.plan, home / "prometheus", rules=rules)
        )
        yield Watched(stack, audit, prometheus, pause_file)


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
    assert await watched.until(lambda _: True) == WITHOUT_FAULT


@pytest.mark.parametrize(
    ("fault", "alerts"),
    [
        pytest.param(process_faults.without_redis, {"TallyRedisAbsent"}, id="Redis away"),
        pytest.param(process_faults.replica_killed, {"TallyTargetDown"}, id="a replica killed"),
        pytest.param(
            row_faults.account_held,
            {"TallyRetriesExhausted", "TallyLockWaitedLong"},
            id="a session keeps a row",
        ),
        pytest.param(row_faults.campaign_held, {"TallyQueueAge"}, id="a session keeps a campaign"),
        pytest.param(row_faults.commits_slow, {"TallyLockHeldLong"}, id="COMMITs are slow"),
        pytest.param(row_faults.ledger_locked, {"TallyPoolExhausted"}, id="a table is locked"),
        pytest.param(
            row_faults.locked_in_another_order,
            {"TallyDatabaseDeadlocks"},
            id="rows in another order",
        ),
        pytest.param(
            row_faults.saga_not_readable,
            {"TallyRowNotReadable", "TallyUnexpectedErrors"},
            id="a saga of an unknown release",
        ),
        pytest.param(
            process_faults.process_throttled, {"TallyEventLoopLag"}, id="a process is throttled"
        ),
        pytest.param(
            process_faults.pause_file_wrong, {"TallyPauseFileRejected"}, id="a method is misspelt"
        ),
        pytest.param(
            process_faults.database_away,
            {"TallyServiceDown", "TallyReplicaNotReady"},
            id="a database refuses its service",
        ),
        pytest.param(money_faults.refund_refused, {"TallyRefundOverdue"}, id="a refund is refused"),
        pytest.param(
            money_faults.account_changed, {"TallyAuditBreach"}, id="a balance changed by SQL"
        ),
        pytest.param(
            process_faults.without_gateway,
            {"TallyCircuitOpen", "TallyPaymentOutcomeUnknown"},
            id="the gateway away",
        ),
        pytest.param(
            money_faults.saga_closed,
            {"TallyResolvedSagaNotUndone"},
            id="a saga closed without gateway",
        ),
        pytest.param(
            money_faults.deduction_stands, {"TallyAuditNewStanding"}, id="a deduction left to stand"
        ),
        pytest.param(
            process_faults.balance_paused,
            {
                *("TallyServiceDown", "TallyTargetDown"),
                *("TallyCompensationFailed", "TallySagaNeedsAttention"),
            },
            id="a service hangs",
        ),
    ],
)
async def test_alerts_fire_and_resolve(watched: Watched, fault: Fault, alerts: set[str]) -> None:
    # An earlier fault may have made one of them fire.
    assert alerts & await watched.until(alerts.isdisjoint) == set()
    async with fault(watched):
        assert alerts - await watched.until(alerts.issubset) == set()
    assert alerts & await watched.until(alerts.isdisjoint) == set()
