"""The local PostgreSQL and Valkey servers: roles, durability, and what a crash leaves behind."""

from __future__ import annotations

import json
import signal
import socket
import struct
import subprocess
from contextlib import nullcontext
from pathlib import Path

import asyncpg
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from deploy.local.errors import RunnerError
from deploy.local.postgres import PostgresServer
from deploy.local.processes import free_port, hold_port
from deploy.local.valkey import ValkeyServer

IP_LOCAL_PORT_RANGE = 51
"""Of linux/in.h: the ports that a socket may get as its own, since Linux 6.3."""


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
    with pytest.raises(RunnerError, match=rf"^port {postgres_server.port} .* is taken: .*$"):
        server.start()


@pytest.mark.parametrize("held", [True, False], ids=["held", "control"])
def test_a_connection_does_not_take_the_port_of_a_server_to_come(held: bool) -> None:
    port = free_port()
    holding = hold_port(port, "a server") if held else socket.socket()
    with holding, socket.create_server(("127.0.0.1", 0)) as other, socket.socket() as client:
        # The kernel has no other port to give.
        try:
            client.setsockopt(socket.IPPROTO_IP, IP_LOCAL_PORT_RANGE, struct.pack("HH", port, port))
        except OSError:
            pytest.skip("needs Linux 6.3")
        with pytest.raises(OSError) if held else nullcontext():
            client.connect(other.getsockname())
        with nullcontext() if held else pytest.raises(OSError, match="in use"):
            socket.create_server(("127.0.0.1", port)).close()


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
