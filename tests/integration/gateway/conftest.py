from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from deploy.local.gateway.simulator import GatewaySimulator


@pytest.fixture
def simulator(tmp_path: Path) -> Iterator[GatewaySimulator]:
    with GatewaySimulator(tmp_path / "gateway.db", slow_ms=300) as running:
        yield running


@pytest.fixture
async def merchant(simulator: GatewaySimulator) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(
        base_url=simulator.url, auth=(simulator.secret_key, ""), timeout=20, trust_env=False
    ) as client:
        yield client
