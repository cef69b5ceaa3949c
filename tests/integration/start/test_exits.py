"""A replica with a wrong setting ends: one line with the setting and the reason, no traceback."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest

from deploy.local.postgres_roles import ServiceUrls
from tests.integration.start.services import (
    AWAY,
    FAILED,
    PASSWORD,
    USAGE,
    every_service,
    last_line,
    started,
    variable,
    with_password,
)

URL = f"postgresql://tally:{PASSWORD}@{AWAY}/tally"


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which another process listens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


@every_service
async def test_a_taken_port_is_reported_with_its_setting(service: str, taken: int) -> None:
    address = f"127.0.0.1:{taken}"
    line = await last_line(service, FAILED, {"TALLY_BIND": address}, url=URL)
    assert line == f"TALLY_BIND: cannot listen on {address}: Address already in use"


async def test_a_taken_metrics_port_is_reported_with_its_setting(taken: int) -> None:
    line = await last_line("balance", FAILED, {"TALLY_METRICS_PORT": str(taken)}, url=URL)
    address = f"127.0.0.1:{taken}"
    assert line == f"TALLY_METRICS_PORT: cannot listen on {address}: Address already in use"


@pytest.mark.parametrize(
    ("service", "name", "value"),
    [
        ("balance", "TALLY_BALANCE_DATABASE_URL", f"{URL}?sslmode={PASSWORD}"),
        # Only the client knows which options it accepts.
        ("coupon", "TALLY_REDIS_URL", f"redis://:{PASSWORD}@{AWAY}/0?unknown=1"),
        ("payment", "TALLY_REDIS_URL", f"redis://:{PASSWORD}@{AWAY}/0?socket_timeout={PASSWORD}"),
        # Files are read when they are needed.
        ("balance", "TALLY_TLS_DIR", "/absent"),
        ("order", "TALLY_PEER_TLS_DIR", "/absent"),
    ],
)
async def test_a_malformed_setting_is_named(service: str, name: str, value: str) -> None:
    assert (await last_line(service, USAGE, {name: value}, url=URL)).startswith(f"{name}: ")


async def test_migrate_names_the_owners_setting(migrated: ServiceUrls) -> None:
    name = variable("balance", "OWNER_DATABASE_URL")
    for status, url, expected in (
        (USAGE, "", "needed to migrate, not set"),
        (FAILED, URL, f"no answer from {AWAY}: Connection refused"),
        (
            FAILED,
            with_password(migrated.owner),
            'password authentication failed for user "tally_balance_owner"',
        ),
    ):
        assert await last_line("balance", status, {name: url}, "migrate") == f"{name}: {expected}"


async def test_an_unknown_setting_is_a_warning_and_the_replica_serves(
    migrated: ServiceUrls,
) -> None:
    given = {"TALLY_BALANCE_POOLSIZE": "9", "TALLY_COUPON_POOL_SIZE": "9"}
    async with started("balance", migrated.runtime, **given) as (running, calling):
        await running.line("ready")
        await calling.assert_serves()
    [line] = [line for line in running.lines if "unknown setting" in line]
    assert json.loads(line)["reason"] == "TALLY_BALANCE_POOLSIZE: there is no such setting"
