"""Alerts about PostgreSQL under real faults of a server and its standby, as exporters see them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import pytest

from tests.monitoring import postgres_faults
from tests.monitoring.exporters import POSTGRES, needs
from tests.monitoring.scene import Fault, drill
from tests.monitoring.servers import Servers, needs_root, running_servers
from tests.support.alert_rules import shortened
from tests.support.prometheus import needs_prometheus

pytestmark = [
    *(needs_prometheus, needs(POSTGRES), needs_root),
    *(pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)),
]

DRILLS: Final = [
    pytest.param(
        postgres_faults.transaction_forgotten,
        {"TallyPostgresOldTransaction": r"psql of olga.*idle in transaction.*CREATE TABLE"},
        id="a forgotten transaction",
    ),
    pytest.param(
        postgres_faults.connections_leaked,
        {"TallyPostgresConnections": r"nightly report +\| +260"},
        id="connections are leaked",
    ),
    pytest.param(
        postgres_faults.replay_paused,
        {"TallyPostgresReplicationLag": r"streaming.*async.*7\d MB"},
        id="a standby does not replay",
    ),
    pytest.param(
        postgres_faults.slot_abandoned,
        {"TallyPostgresDisk": r"gone +\| f +\| \d+ MB"},
        id="a slot keeps the log",
    ),
    pytest.param(
        postgres_faults.server_killed,
        {"TallyPostgresDown": "Connection refused"},
        id="a server crashes",
    ),
]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    home = tmp_path_factory.mktemp("servers")
    with running_servers(home, shortened(home / "rules")) as running:
        yield running


@pytest.mark.parametrize(("fault", "alerts"), DRILLS)
async def test_alerts_fire_and_resolve(
    servers: Servers, fault: Fault[Servers], alerts: Mapping[str, str]
) -> None:
    await drill(servers, fault, alerts)
