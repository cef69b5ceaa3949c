"""The client runs in other people's processes: what it loads and changes there."""

from __future__ import annotations

import subprocess
import sys

FOR_SERVERS_ONLY = (
    *("sqlalchemy", "redis", "asyncpg", "alembic", "prometheus_client", "protovalidate"),
    *("pydantic_settings", "stamina", "structlog", "uvloop", "opentelemetry"),
)


def test_it_loads_nothing_that_only_the_services_need() -> None:
    program = "import sys, tally_client; print(*{name.partition('.')[0] for name in sys.modules})"
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    loaded = set(ended.stdout.split())
    assert {"grpc", "tally_client"} <= loaded
    assert not loaded & set(FOR_SERVERS_ONLY)
