from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local.gateway.simulator import GatewaySimulator


@pytest.fixture
def simulator(tmp_path: Path) -> Iterator[GatewaySimulator]:
    with GatewaySimulator(tmp_path / "gateway.db", slow_ms=300) as running:
        yield running
