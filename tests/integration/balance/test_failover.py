"""A server that takes no more writes while a batch of a lane runs on it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from balance_service.model import Account
from balance_service.settings import BalanceSettings
from balance_service.store import account as store
from balance_service.wiring import build
from common.db.writes import Write
from deploy.local.postgres import PostgresServer
from deploy.local.postgres_files import PostgresFiles
from tally.balance.v1.balance_pb2_grpc import BalanceServiceStub
from tests.support.balances import available, charge, deduct
from tests.support.databases import Databases
from tests.support.refusals import outcome, refused
from tests.support.replicas import channel, replicas

AWAY = "DATABASE_UNAVAILABLE"
Flip = Callable[[PostgresServer], None]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[PostgresServer]:
    """A server of its own: it is restarted, and its settings change."""
    with PostgresServer(tmp_path / "postgres", durable=False) as running:
        yield running


@pytest.fixture
async def balance(server: PostgresServer) -> AsyncIterator[Any]:
    """One replica; its user has 1,000."""
    with Databases(server).clone("balance") as urls:
        async with (
            replicas(1, BalanceSettings, build, database_url=urls.runtime, redis_url="") as found,
            channel(*found) as opened,
        ):
            stub: Any = BalanceServiceStub(opened)
            await stub.ChargeBalance(charge("ann", 1_000, "first"))
            yield stub


def set_read_only(server: PostgresServer) -> None:
    server.run_sql("ALTER SYSTEM SET default_transaction_read_only = on")
    server.run_sql("SELECT pg_reload_conf()")


def become_standby(server: PostgresServer) -> None:
    """In place: the address leads to a server that only reads, as after a switch-over."""
    server.stop()
    pgdata = server.files.pgdata
    signal = pgdata / "standby.signal"
    signal.touch(mode=0o600)
    os.chown(signal, pgdata.stat().st_uid, pgdata.stat().st_gid)
    status = PostgresFiles.status
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            PostgresFiles,
            "status",
            lambda files, pid: status(files, pid).replace("standby", "ready"),
        )
        server.start()


def write_again(server: PostgresServer) -> None:
    server.run_sql("SELECT pg_promote() WHERE pg_is_in_recovery()")
    server.run_sql(
        "SET default_transaction_read_only = off;ALTER SYSTEM RESET default_transaction_read_only"
    )
    server.run_sql("SELECT pg_reload_conf()")


@pytest.mark.parametrize(
    ("flip", "running"),
    [
        # Its transaction has begun, and may write.
        pytest.param(set_read_only, "OK", id="setting"),
        pytest.param(become_standby, AWAY, id="standby"),
    ],
)
async def test_a_batch_is_decided_once_when_its_server_becomes_read_only(
    balance: Any,
    server: PostgresServer,
    monkeypatch: pytest.MonkeyPatch,
    flip: Flip,
    running: str,
) -> None:
    saving = store.saving

    def flip_before_save(changed: Iterable[Account]) -> list[Write]:
        # Once, and with the event loop stopped: the batch finds out by its next statement.
        monkeypatch.setattr(store, "saving", saving)
        flip(server)
        return saving(changed)

    monkeypatch.setattr(store, "saving", flip_before_save)
    first = await outcome(balance.DeductBalance(deduct("ann", 300, "during")))
    assert (first if isinstance(first, str) else "OK") == running
    with refused(AWAY):
        await balance.DeductBalance(deduct("ann", 50, "after"))
    write_again(server)
    # The replica finds out by itself, and nothing was lost or done twice.
    for amount, request_id in ((300, "during"), (50, "after")):
        while await outcome(balance.DeductBalance(deduct("ann", amount, request_id))) == AWAY:
            pass
    assert await available(balance, "ann") == 650
    replayed = await balance.DeductBalance(deduct("ann", 300, "during"))
    assert replayed.replayed
