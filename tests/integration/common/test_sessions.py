"""Sessions from their opening to their loss, and the one repeat that is safe."""

from __future__ import annotations

import asyncio
import socket
import threading
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import make_url

from balance_service.settings import BalanceSettings
from common import settings
from common.db import connections, pool
from common.db.database import Database, open_database, open_pools
from common.db.pool import Pool
from common.db.repeat import in_transaction, read
from common.db.statements import Connection
from common.errors import DatabaseUnavailable
from deploy.local.postgres import PostgresServer
from deploy.local.postgres_roles import ServiceUrls
from tests.integration.common.lanes import Insert, Inserts, lane_of
from tests.integration.start.services import at_port, server_of
from tests.support.databases import name_of
from tests.support.fake_server import TcpProxy
from tests.support.payments import until
from tests.support.time_limits import LONG_S

PID = sa.text("SELECT pg_backend_pid()")
SESSIONS = 2
"""Of each pool; every one of them is lost."""

SHUTDOWN = b"E\x00\x00\x00\x23SFATAL\x00C57P01\x00Mgoing down now\x00\x00"
"""The server's message that it ends a session. The end of the connection comes after it."""

Lose = Callable[[], Awaitable[object]]


async def pid(connection: Connection) -> int:
    return int((await connection.execute(PID)).scalar_one())


async def fill(of: Pool, *, run: sa.TextClause = PID) -> None:
    """Open every session of the pool, and run a statement in each."""
    async with AsyncExitStack() as stack:
        for _ in range(SESSIONS):
            connection = await stack.enter_async_context(of.connect())
            await connection.execute(run)


@pytest.fixture
async def box(core_urls: ServiceUrls) -> AsyncIterator[TcpProxy]:
    async with TcpProxy.to(server_of(core_urls.runtime)) as opened:
        yield opened


@pytest.fixture
async def database(
    core_urls: ServiceUrls, box: TcpProxy, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Database]:
    """Two sessions in each pool, by way of a proxy; every idle one is proven."""
    monkeypatch.setattr(pool, "UNPROVEN_IDLE_S", 0.0)
    monkeypatch.setattr("common.db.database.STATEMENT_TIMEOUT_MS", 1_000)
    port = int(box.address.rpartition(":")[2])
    url = at_port(core_urls.runtime, port)
    opened = open_pools(url, application_name="core test", pool_size=3 * SESSIONS + 1)
    yield opened
    await opened.close()


@pytest.fixture
def lose(
    database: Database,
    box: TcpProxy,
    core_urls: ServiceUrls,
    postgres_server: PostgresServer,
    monkeypatch: pytest.MonkeyPatch,
) -> dict[str, Lose]:
    """Ways in which every session of the pools is of no more use, while the server is well."""

    async def sql(text: str) -> None:
        await asyncio.to_thread(postgres_server.run_sql, text, name_of(core_urls))

    async def in_each(text: str) -> None:
        for each in (database.reads, database.waiting, database.lanes):
            await fill(each, run=sa.text(text))

    async def idle() -> None:
        await in_each("SET idle_session_timeout = '50ms'")
        left = (
            "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'core test%'"
            f" AND datname = '{name_of(core_urls)}'"
        )
        await until(
            lambda: asyncio.to_thread(postgres_server.run_sql, left), lambda count: not int(count)
        )

    async def announce() -> None:
        for flow in box.flows:
            flow.to_client.write(SHUTDOWN)
        # So that the driver has read it.
        await asyncio.sleep(0.05)

    async def forget() -> None:
        monkeypatch.setattr(pool, "PROOF_S", 0.2)
        box.forget()

    return {
        "idle": idle,
        "ended": lambda: sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            f" WHERE application_name LIKE 'core test%' AND datname = '{name_of(core_urls)}'"
        ),
        "announced": announce,
        "discarded": lambda: in_each("DISCARD ALL"),
        "forgotten": forget,
        "read-only": lambda: in_each("SET default_transaction_read_only = on"),
        "retyped": lambda: sql("ALTER TABLE numbers ALTER COLUMN number TYPE numeric"),
    }


NUMBERS = sa.text("SELECT number FROM numbers")
every_loss = pytest.mark.parametrize(
    "loss", ["idle", "ended", "announced", "discarded", "forgotten", "read-only", "retyped"]
)


async def insert(connection: Connection, *, number: int = 7) -> list[int]:
    await connection.execute(sa.text("INSERT INTO numbers VALUES (:number)"), {"number": number})
    return list((await connection.execute(NUMBERS)).scalars())


async def numbers(connection: Connection) -> list[int]:
    return list((await connection.execute(NUMBERS)).scalars())


@every_loss
@pytest.mark.parametrize("proven", [True, False], ids=["proven", "unproven"])
async def test_work_survives_the_loss_of_every_pooled_session(
    database: Database, lose: dict[str, Lose], loss: str, proven: bool, monkeypatch: Any
) -> None:
    """By the proof before use; without it, by the one repeat, or the next try of the batch.

    The repeat gets a fresh session, not another one of those that were opened before the loss.
    """
    for engine in (database.reads, database.waiting, database.lanes):
        await fill(engine, run=NUMBERS)
    await lose[loss]()
    if not proven:
        monkeypatch.setattr(pool, "UNPROVEN_IDLE_S", 60.0)
    _, inserted = await asyncio.gather(
        read(database, numbers), in_transaction(database, "other", insert)
    )
    assert inserted == [7]
    if proven or loss != "forgotten":  # A lane does not wait a second time for a silent server.
        assert await lane_of(database, Inserts()).submit(Insert(8)) == -8
    assert 7 in await read(database, numbers)


AT_COMMIT = """
CREATE SEQUENCE commits;
GRANT USAGE ON commits TO tally_balance_runtime;
CREATE FUNCTION lose_first() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF nextval('commits') = 1 THEN PERFORM pg_terminate_backend(pg_backend_pid()); END IF;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER lose_first AFTER INSERT ON numbers
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION lose_first();
"""


async def test_a_loss_at_commit_is_repeated_only_where_that_is_idempotent(
    database: Database, core_urls: ServiceUrls, postgres_server: PostgresServer
) -> None:
    """It is unknown whether the server committed."""
    postgres_server.run_sql(AT_COMMIT, name_of(core_urls))
    with pytest.raises(DatabaseUnavailable):
        await in_transaction(database, "other", insert)
    postgres_server.run_sql("ALTER SEQUENCE commits RESTART", name_of(core_urls))
    assert await in_transaction(database, "other", insert, idempotent=True) == [7]


async def test_a_server_that_is_away_is_not_tried_twice(core_urls: ServiceUrls) -> None:
    async with TcpProxy.to("127.0.0.1:1") as away:
        url = at_port(core_urls.runtime, int(away.address.rpartition(":")[2]))
        database = open_pools(url, application_name="away", pool_size=4)
        with pytest.raises(OSError):
            async with database.reads.connect():
                pass
        once = len(away.flows)
        with pytest.raises(DatabaseUnavailable):
            await read(database, pid)
        assert len(away.flows) == 2 * once
        await database.close()


async def test_a_full_disk_is_unavailable_and_its_sessions_stay(database: Database) -> None:
    full = sa.text("DO $$ BEGIN RAISE 'no space left' USING ERRCODE = 'disk_full'; END $$")
    before = await read(database, pid)
    with pytest.raises(DatabaseUnavailable):
        await read(database, lambda connection: connection.execute(full))
    assert await read(database, pid) == before


# -- one session -----------------------------------------------------------------------------------


async def test_a_session_is_replaced_at_its_age(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await read(database, pid)
    assert await read(database, pid) == first
    monkeypatch.setattr(pool, "LIFETIME_S", 0.0)
    assert await read(database, pid) == first, "it keeps the age that it began with"
    async with database.reads.connect() as connection:
        connection.session.terminate()
    second = await read(database, pid)
    assert await read(database, pid) != second


async def test_both_ends_of_a_session_notice_that_the_other_is_gone(database: Database) -> None:
    async with database.reads.connect() as connection:
        used = connection.session._transport.get_extra_info("socket")
        client = [used.getsockopt(level, name) for level, name, _ in connections._SOCKET_OPTIONS]
        assert client == [value for _, _, value in connections._SOCKET_OPTIONS]
        for name, value in connections.SERVER_SETTINGS.items():
            setting = sa.text(f"SELECT setting FROM pg_settings WHERE name = '{name}'")
            assert (await connection.execute(setting)).scalar_one() == value


async def test_the_server_ends_the_statement_of_an_abandoned_session(
    core_urls: ServiceUrls, postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So its row locks are free long before the statement's own limit."""
    monkeypatch.setattr("common.db.database.STATEMENT_TIMEOUT_MS", 60_000)
    monkeypatch.setitem(connections.SERVER_SETTINGS, "client_connection_check_interval", "20")
    database = open_pools(core_urls.runtime, application_name="left", pool_size=4)

    async def sleeping() -> int:
        sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
        return int(await asyncio.to_thread(postgres_server.run_sql, sql, name_of(core_urls)))

    async with database.reads.connect() as connection:
        statement = asyncio.create_task(connection.execute(sa.text("SELECT pg_sleep(60)")))
        while not await sleeping():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        statement.cancel()
        with pytest.raises(asyncio.CancelledError):
            await statement
        while await sleeping():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await database.close()


# -- opening ---------------------------------------------------------------------------------------


class SilentNames:
    """The system's resolver, which answers nothing about ``db.test`` until ``answers`` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answers = threading.Event()
        self.waiting = 0
        self._resolve = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self._getaddrinfo)

    def _getaddrinfo(self, host: str, *arguments: Any, **options: Any) -> Any:
        if host == "db.test":
            self.waiting += 1
            self.answers.wait()
            self.waiting -= 1
            host = "127.0.0.1"
        return self._resolve(host, *arguments, **options)


async def test_a_silent_name_server_holds_one_thread_and_heals(
    core_urls: ServiceUrls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often a session is asked for. Other names are looked up meanwhile."""
    monkeypatch.setattr(connections, "CONNECT_TIMEOUT_S", 0.1)
    url = make_url(core_urls.runtime).set(host="db.test").render_as_string(hide_password=False)
    database = open_pools(url, application_name="names", pool_size=10)
    names = SilentNames(monkeypatch)
    try:
        for _ in range(4):
            refused = await asyncio.gather(
                *(read(database, pid) for _ in range(3)), return_exceptions=True
            )
            assert [type(each) for each in refused] == [DatabaseUnavailable] * 3
        assert names.waiting == 1
        monkeypatch.setattr(connections, "CONNECT_TIMEOUT_S", LONG_S)
        healed = asyncio.create_task(read(database, pid))
        assert await asyncio.get_running_loop().getaddrinfo("127.0.0.2", 1)
    finally:
        names.answers.set()
    assert await healed
    await database.close()


async def test_a_password_changed_in_its_file_is_used_without_a_restart(
    core_urls: ServiceUrls,
    postgres_server: PostgresServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Open sessions go on with the old one."""
    role = f"rotated_{uuid.uuid4().hex[:12]}"
    url = make_url(core_urls.runtime).set(username=role)
    file = tmp_path / "TALLY_BALANCE_DATABASE_URL"
    monkeypatch.setenv("TALLY_SECRETS_DIR", str(tmp_path))

    def write(password: str) -> None:
        file.write_text(url.set(password=password).render_as_string(hide_password=False) + "\n")

    rights = "LOGIN PASSWORD 'one' IN ROLE tally_balance_runtime"
    postgres_server.run_sql(f"CREATE ROLE {role} {rights}")
    write("one")
    async with open_database(settings.read(BalanceSettings)) as database:
        first = await read(database, pid)
        postgres_server.run_sql(f"ALTER ROLE {role} PASSWORD 'two'")
        assert await read(database, pid) == first
        with pytest.raises(DatabaseUnavailable):
            await in_transaction(database, "other", pid)
        write("two")
        assert await in_transaction(database, "other", pid)
        postgres_server.run_sql(f"ALTER ROLE {role} PASSWORD 'one'")
        file.write_text("half a line")
        async with database.reads.connect() as connection:
            connection.session.terminate()
        assert await read(database, pid)
    postgres_server.run_sql(f"DROP ROLE {role}")


async def test_a_session_in_use_forgets_its_plans_however_long_that_takes(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that is slow for a second costs no session, as it costs no statement."""
    monkeypatch.setattr(pool, "UNPROVEN_IDLE_S", 60.0)
    monkeypatch.setattr(pool, "PLANS_S", 0.0)
    monkeypatch.setattr(pool, "PROOF_S", 1e-6)
    pids = set()
    for _ in range(3):
        async with database.lanes.connect() as connection:
            pids.add(await pid(connection))
    assert len(pids) == 1
