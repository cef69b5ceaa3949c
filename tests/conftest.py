"""The servers that tests share: real ones, started when first asked for, stopped at the end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import pytest
import structlog
from hypothesis import settings

from deploy.local.gateway.simulator import GatewaySimulator
from deploy.local.postgres import PostgresServer
from deploy.local.valkey import ValkeyServer
from tests.support.databases import ROOT, Databases, clone_of
from tests.support.ends import stand_ins_noted, undeclared
from tests.support.time_limits import LONG_S

# Tracebacks as a replica logs them. The default, with every local variable, takes seconds each.
structlog.configure(
    processors=[
        *structlog.get_config()["processors"][:-1],
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback),
    ]
)

# An example has no time limit: a busy machine stops a process for longer than any.
settings.register_profile("tally", deadline=None)
settings.load_profile("tally")

LONGEST: Final = (
    "integration/replicas",
    "integration/faults",
    "integration/local",
    "integration/load",
    "integration/manifests",
    "integration/start",
    "concurrency",
)
"""Folders of tests whose files take half a minute and more, the longest first."""
SHORTEST: Final = "unit"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--no-redis",
        action="store_true",
        help="run without Redis what runs with Redis only by default",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files: of two processes, neither is left alone with one at the end."""
    tests = ROOT / "tests"

    def rank(item: pytest.Item) -> int:
        for number, name in enumerate(LONGEST):
            if item.path.is_relative_to(tests / name):
                return number
        return len(LONGEST) + item.path.is_relative_to(tests / SHORTEST)

    items.sort(key=rank)


@pytest.fixture(scope="module", autouse=True)
def only_declared_ends() -> Iterator[None]:
    """Calls that this process served ended as the servicers declare (``@refuses``)."""
    with stand_ins_noted():
        yield
    assert undeclared() == []


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """One PostgreSQL for the whole run; each test makes databases of its own in it."""
    with PostgresServer(tmp_path_factory.mktemp("postgres"), durable=False) as server:
        yield server


@pytest.fixture(scope="session")
def valkey_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    """One Valkey for the whole run; each test uses keys of its own, or flushes it."""
    with ValkeyServer(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture(scope="module")
def redis_url(request: pytest.FixtureRequest) -> str:
    """Redis for the services of a test; '' where it asks for "no-redis", or under --no-redis.

    Integration tests run with Redis only, and without it under --no-redis. Races of operations that
    lock in Redis run both ways in every run.
    """
    without = request.config.getoption("--no-redis")
    if getattr(request, "param", "no-redis" if without else "redis") == "no-redis":
        return ""
    server: ValkeyServer = request.getfixturevalue("valkey_server")
    return server.url


@pytest.fixture
def slow_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """No command to Redis fails because the tests keep the machine busy."""
    monkeypatch.setattr("common.locking.redis.TIMEOUT_S", LONG_S)


@pytest.fixture(scope="session")
def databases(postgres_server: PostgresServer) -> Databases:
    """Migrated databases for single tests."""
    return Databases(postgres_server)


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewaySimulator]:
    """One gateway for the whole run; each test uses payment_keys of its own."""
    data_file = tmp_path_factory.mktemp("gateway") / "gateway.db"
    with GatewaySimulator(data_file, slow_ms=400) as running:
        yield running


balance_database = clone_of("balance")
coupon_database = clone_of("coupon")
order_database = clone_of("order")
payment_database = clone_of("payment")
