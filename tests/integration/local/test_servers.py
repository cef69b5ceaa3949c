"""The local PostgreSQL and Valkey servers: roles, durability, and what a crash leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import asyncpg
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from deploy.local.errors import RunnerError
from deploy.local.postgres import PostgresServer
from deploy.local.processes import free_port
from deploy.local.valkey import ValkeyServer


async def test_roles_have_their_rights_and_reach_no_other_database(
    postgres_server: PostgresServer,
) -> None:
    mine, other = (postgres_server.provision(service) for service in ("mine", "other"))
    owner = await asyncpg.connect(mine.owner)
    await owner.execute("CREATE TABLE kept (id int)")
    await owner.close()
    for url in (mine.runtime, mine.audit):
        connection = await asyncpg.connect(url)
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute("CREATE TABLE made (id int)")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute("SELECT * FROM kept")
        await connection.close()
    for database in ("tally_other", "postgres", "template1"):
        elsewhere = postgres_server.urls("mine", database)
        for url in (elsewhere.owner, elsewhere.runtime, elsewhere.audit):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await asyncpg.connect(url)
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(mine.owner.replace("tally_mine_owner:", "tally_other_owner:"))
    assert postgres_server.provision("other") == other


async def test_clone_has_the_templates_tables_and_admits_its_roles_only(
    postgres_server: PostgresServer,
) -> None:
    urls = postgres_server.provision("cloned")
    postgres_server.provision("stranger")
    owner = await asyncpg.connect(urls.owner)
    await owner.execute("CREATE TABLE kept AS SELECT 7 AS id")
    await owner.close()
    clone = postgres_server.create_database("clone", service="cloned", template="tally_cloned")
    owner = await asyncpg.connect(clone.owner)
    assert await owner.fetchval("SELECT id FROM kept") == 7
    stranger = postgres_server.urls("stranger", "clone")
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await asyncpg.connect(stranger.runtime)
    postgres_server.drop_database("clone")
    with pytest.raises(asyncpg.InvalidCatalogNameError):
        await asyncpg.connect(clone.owner)
    owner.terminate()


def test_server_is_durable_by_default(tmp_path: Path, postgres_server: PostgresServer) -> None:
    ask = "SELECT current_setting('fsync'), current_setting('synchronous_commit')"
    assert postgres_server.run_sql(ask).strip() == "off|off"
    with PostgresServer(tmp_path) as server:
        assert server.run_sql(ask).strip() == "on|on"
        assert server.run_sql("SHOW listen_addresses").strip() == "127.0.0.1"
        assert server.run_sql("SHOW unix_socket_directories").strip() == ""


def test_valkey_requires_the_password(valkey_server: ValkeyServer) -> None:
    with redis.Redis.from_url(valkey_server.url) as client:
        assert client.ping()
    with (
        redis.Redis(port=valkey_server.port, retry=Retry(NoBackoff(), 0)) as client,
        pytest.raises(redis.AuthenticationError),
    ):
        client.ping()


OWNER_OF_A_SERVER = """
import pathlib, sys, time
from deploy.local.postgres import PostgresServer
server = PostgresServer(pathlib.Path(sys.argv[1]))
server.start()
server.run_sql("CREATE TABLE IF NOT EXISTS kept (id int); INSERT INTO kept VALUES (1)")
print(server.child.pid, flush=True)
time.sleep(60)
"""


def test_server_dies_with_its_owner_and_its_data_remains(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER_OF_A_SERVER, tmp_path],
        stdout=subprocess.PIPE,
        text=True,
    ) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        owner.kill()
    wait_until_gone(pid)
    with PostgresServer(tmp_path) as server:
        assert server.run_sql("SELECT count(*) FROM kept").strip() == "1"


def test_server_that_survived_its_owner_is_stopped(tmp_path: Path) -> None:
    left_over = PostgresServer(tmp_path, durable=False)
    left_over.start()
    with PostgresServer(tmp_path, durable=False) as server:
        assert left_over.child is not None
        assert left_over.child.exit_code() is not None
        assert server.run_sql("SELECT 1").strip() == "1"


def test_pid_file_with_the_pid_of_another_program_is_ignored(tmp_path: Path) -> None:
    first = PostgresServer(tmp_path, durable=False)
    first.start()
    assert first.child is not None
    first.child.stop(signal.SIGKILL)
    # The pid now belongs to another program of the same user.
    with subprocess.Popen(["sleep", "60"], user=first.files.pgdata.stat().st_uid) as stranger:
        pid_file = first.files.pgdata / "postmaster.pid"
        pid_file.write_text(
            pid_file.read_text().replace(str(first.child.pid), str(stranger.pid), 1)
        )
        with PostgresServer(tmp_path, durable=False) as server:
            assert server.run_sql("SELECT 1").strip() == "1"
        assert stranger.poll() is None
        stranger.kill()


def test_taken_port_is_reported_in_one_line(
    tmp_path: Path, postgres_server: PostgresServer
) -> None:
    server = PostgresServer(tmp_path, postgres_server.port, durable=False)
    with pytest.raises(RunnerError, match=rf"^port {postgres_server.port} .* is taken$"):
        server.start()


def test_interrupted_initdb_is_repeated(tmp_path: Path) -> None:
    unfinished = tmp_path / "pgdata.unfinished"
    unfinished.mkdir()
    (unfinished / "PG_VERSION").write_text("18\n")
    with PostgresServer(tmp_path, durable=False) as server:
        assert server.run_sql("SELECT 1").strip() == "1"
    assert not unfinished.exists()


def test_unusable_directory_is_reported(tmp_path: Path) -> None:
    empty, locked_out = tmp_path / "empty", tmp_path / "locked_out"
    for directory in (empty, locked_out):
        (directory / "pgdata").mkdir(parents=True)
    (empty / "passwords.json").write_text(json.dumps({"postgres": "x"}))
    for directory, words in (
        (empty, "postgres did not start"),
        (locked_out, "passwords.json is missing"),
    ):
        with pytest.raises(RunnerError, match=words):
            PostgresServer(directory, free_port()).start()


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.02)
    pytest.fail(f"process {pid} is still there")
