"""A replica that is told something wrong ends: one line, the setting and why, no traceback."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from deploy.local.postgres_roles import ServiceUrls
from tests.integration.start.process import process
from tests.integration.start.services import AWAY, PASSWORD, SERVICES, client, environment
from tests.support.databases import Databases

URL = f"postgresql://tally:{PASSWORD}@{AWAY}/tally"
USAGE, FAILED = 2, 1


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which somebody else listens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


@pytest.fixture
def migrated(databases: Databases) -> Iterator[ServiceUrls]:
    """A database of the balance service."""
    with databases.clone("balance") as urls:
        yield urls


async def last_line(service: str, status: int, given: dict[str, str], *arguments: str) -> str:
    """What the process tells at its end, which it must reach with ``status``."""
    whole = {**environment(service, URL), **given}
    async with process(f"{service}_service", *arguments, **whole) as running:
        ended, told = await running.end()
    assert ended == status, told
    assert PASSWORD not in told
    assert "Traceback" not in told
    assert '"critical"' not in told
    assert '"listening"' not in told
    return told.splitlines()[-1]


@pytest.mark.parametrize("service", SERVICES)
async def test_without_a_database_setting_nothing_starts(service: str) -> None:
    name = f"TALLY_{service.upper()}_DATABASE_URL"
    assert await last_line(service, USAGE, {name: ""}) == f"{name}: needed to serve, not set"


@pytest.mark.parametrize("service", SERVICES)
async def test_a_taken_port_is_told_with_its_setting(service: str, taken: int) -> None:
    address = f"127.0.0.1:{taken}"
    told = await last_line(service, FAILED, {"TALLY_BIND": address})
    assert told == f"TALLY_BIND: cannot listen on {address}: Address already in use"


async def test_a_taken_metrics_port_is_told_with_its_setting(taken: int) -> None:
    told = await last_line("balance", FAILED, {"TALLY_METRICS_PORT": str(taken)})
    where = f"127.0.0.1:{taken}"
    assert told == f"TALLY_METRICS_PORT: cannot listen on {where}: Address already in use"


@pytest.mark.parametrize(
    ("service", "name", "value"),
    [
        ("balance", "TALLY_BALANCE_DATABASE_URL", f"postgresql://u:{PASSWORD}@h:port/d"),
        ("balance", "TALLY_BALANCE_DATABASE_URL", f"{URL}?sslmode={PASSWORD}"),
        ("coupon", "TALLY_REDIS_URL", f"redis://:{PASSWORD}@h:port/0"),
        ("coupon", "TALLY_REDIS_URL", f"redis://:{PASSWORD}@h:1/0?unheard_of=1"),
        ("order", "TALLY_ORDER_COUPON_ADDRESS", "a:1,b:2"),
        ("payment", "TALLY_PAYMENT_GATEWAY_URL", f"ftp://{PASSWORD}"),
        ("payment", "TALLY_PAYMENT_GATEWAY_SECRET_KEY", ""),
        ("payment", "TALLY_PAYMENT_LEASE_S", "0.5"),
        ("payment", "TALLY_POOL_SIZE", PASSWORD),
    ],
)
async def test_a_malformed_setting_is_named(service: str, name: str, value: str) -> None:
    assert (await last_line(service, USAGE, {name: value})).startswith(f"{name}: ")


def is_missing(directory: Path) -> str:
    directory.rmdir()
    return "TALLY_SECRETS_DIR: is not a directory"


def is_a_file(directory: Path) -> str:
    directory.rmdir()
    directory.write_text(PASSWORD)
    return "TALLY_SECRETS_DIR: is not a directory"


def holds_no_text(directory: Path) -> str:
    file = directory / "tally_redis_url"
    file.write_bytes(PASSWORD.encode() + b"\xff")
    return f"{file}: is not text in UTF-8"


def holds_a_directory(directory: Path) -> str:
    file = directory / "TALLY_BALANCE_DATABASE_URL"
    file.mkdir()
    return f"{file}: is not a file"


def holds_a_dangling_link(directory: Path) -> str:
    file = directory / "TALLY_BALANCE_DATABASE_URL"
    file.symlink_to(directory / "gone")
    return f"{file}: is not a file"


@pytest.mark.parametrize(
    "spoil", [is_missing, is_a_file, holds_no_text, holds_a_directory, holds_a_dangling_link]
)
async def test_secrets_that_cannot_be_read_are_told(
    tmp_path: Path, spoil: Callable[[Path], str]
) -> None:
    directory = tmp_path / "secrets"
    directory.mkdir()
    expected = spoil(directory)
    told = await last_line("balance", USAGE, {"TALLY_SECRETS_DIR": str(directory)})
    assert told == expected


async def test_migrate_names_the_owners_setting(migrated: ServiceUrls) -> None:
    name = "TALLY_BALANCE_OWNER_DATABASE_URL"
    assert await last_line("balance", USAGE, {}, "migrate") == f"{name}: needed to migrate, not set"
    told = await last_line("balance", FAILED, {name: URL}, "migrate")
    assert told == f"{name}: no answer from {AWAY}: Connection refused"
    wrong = make_url(migrated.owner).set(password=PASSWORD).render_as_string(hide_password=False)
    told = await last_line("balance", FAILED, {name: wrong}, "migrate")
    assert told == f'{name}: password authentication failed for user "tally_balance_owner"'


async def test_a_misspelt_setting_is_warned_of_and_the_replica_serves(
    migrated: ServiceUrls,
) -> None:
    given = environment("balance", migrated.runtime) | {
        "TALLY_BALANCE_POOLSIZE": "9",
        "TALLY_MAX_CONCURENT_CALLS": "9",
        "TALLY_COUPON_POOL_SIZE": "9",
    }
    async with process("balance_service", **given) as running:
        hint = "there is no such setting; did you mean"
        assert [(await running.line("unknown setting"))["reason"] for _ in range(2)] == [
            f"TALLY_BALANCE_POOLSIZE: {hint} TALLY_BALANCE_POOL_SIZE?",
            f"TALLY_MAX_CONCURENT_CALLS: {hint} TALLY_MAX_CONCURRENT_CALLS?",
        ]
        port = (await running.line("listening"))["port"]
        await running.line("ready")
        async with client("balance", port) as asking:
            assert await asking.serves()
        _, told = await running.stop()
    assert told.count("unknown setting") == 2
