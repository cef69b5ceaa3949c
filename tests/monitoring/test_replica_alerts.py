"""Alerts about certificates and keys under real faults of a replica with identity and TLS."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import pytest

from tests.monitoring.exporters import BLACKBOX, needs
from tests.monitoring.replicas import (
    EXPIRES,
    Replica,
    certificate_not_renewed,
    keys_not_readable,
    running_replica,
)
from tests.monitoring.scene import Fault, drill
from tests.support.alert_rules import Scale, shortened
from tests.support.prometheus import needs_prometheus

pytestmark = [
    *(needs_prometheus, needs(BLACKBOX)),
    *(pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)),
]

DRILLS: Final = [
    pytest.param(
        certificate_not_renewed,
        {"TallyCertificateExpires": f"notAfter={EXPIRES:%b %e}"},
        id="a certificate is not renewed",
    ),
    pytest.param(
        keys_not_readable,
        {"TallyIdentityKeysNotRead": "is not a JWKS.*identity_keys_not_read"},
        id="keys cannot be read",
    ),
]


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replica]:
    home = tmp_path_factory.mktemp("replica")
    with running_replica(home, shortened(home / "rules", Scale(360))) as running:
        yield running


@pytest.mark.parametrize(("fault", "alerts"), DRILLS)
async def test_alerts_fire_and_resolve(
    replica: Replica, fault: Fault[Replica], alerts: Mapping[str, str]
) -> None:
    await drill(replica, fault, alerts)
