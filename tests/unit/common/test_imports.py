"""What a replica does not load, because its settings do not need it: memory, and time to start."""

from __future__ import annotations

import subprocess
import sys
from typing import Final

import pytest

from deploy.local.plan import PROJECT
from deploy.local.plan import services as service_names

OPTIONAL: Final = {
    "alembic": "migrate",
    "cryptography.x509": "TLS_DIR",
    "jwt": "AUTH=required",
    "opentelemetry.exporter": "OTEL_EXPORTER_OTLP_ENDPOINT",
}
"""By module, what needs it."""


@pytest.mark.parametrize("service", service_names())
def test_a_replica_loads_no_package_of_what_is_off(service: str) -> None:
    program = f"import sys, {service}_service.__main__; print(*sys.modules)"
    ended = subprocess.run(
        [sys.executable, "-c", program],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    loaded = set(ended.stdout.split())
    assert f"{service}_service.wiring" in loaded
    assert loaded.isdisjoint(OPTIONAL), {name: OPTIONAL[name] for name in loaded & OPTIONAL.keys()}
