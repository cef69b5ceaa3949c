"""TLS to PostgreSQL and Redis: whose certificates a service accepts."""

from __future__ import annotations

import ssl
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from balance_service.settings import BalanceSettings
from common.db.database import open_pools
from common.db.migrations import migrate
from common.locking.redis import connection_problem
from common.service import migrations_of
from deploy.local.postgres_roles import ServiceUrls
from deploy.local.valkey import ValkeyServer
from tests.support.certificates import (
    HOST,
    Authority,
    write_certificate,
    write_trusted,
)
from tests.support.databases import Databases
from tests.support.payments import until
from tests.support.redis_topologies import SERVICE, SentinelServer, password_of
from tests.support.tls_proxy import tls_in_front_of, tls_or_plaintext


def through(url: str, port: int, query: str, host: str = HOST) -> str:
    """The URL with the address of the proxy."""
    changed = make_url(url).set(host=host, port=port).render_as_string(hide_password=False)
    return f"{changed}?{query}"


async def problem_of(url: str) -> str:
    """Why the database cannot be used, or ''."""
    database = open_pools(url, application_name="tls test", pool_size=4)
    try:
        async with database.reads.connect():
            return ""
    except OSError as error:  # OpenSSL's, or that of the file
        return str(error)
    finally:
        await database.close()


async def test_the_certificate_of_postgresql_is_checked_as_its_users_know(
    databases: Databases, tmp_path: Path
) -> None:
    right, wrong = Authority(), Authority()
    server = write_certificate(tmp_path / "server", right)
    trusted, other = tmp_path / "right.crt", tmp_path / "wrong.crt"
    trusted.write_text(right.pem)
    other.write_text(wrong.pem)
    absent = tmp_path / "absent.crt"
    with databases.clone("balance") as urls:
        address = make_url(urls.runtime)
        assert address.host is not None
        assert address.port is not None
        async with tls_in_front_of(address.host, address.port, server, postgres=True) as port:
            for query, host, says in (
                (f"sslmode=verify-full&sslrootcert={trusted}", HOST, ""),
                (f"sslmode=verify-ca&sslrootcert={trusted}", "localhost", ""),
                (f"sslmode=require&sslrootcert={trusted}", "localhost", ""),
                ("sslmode=require", HOST, ""),
                (
                    f"sslmode=verify-full&sslrootcert={trusted}",
                    "localhost",
                    "CERTIFICATE_VERIFY_FAILED",
                ),
                (f"sslmode=verify-full&sslrootcert={other}", HOST, "CERTIFICATE_VERIFY_FAILED"),
                (f"sslmode=verify-ca&sslrootcert={other}", HOST, "CERTIFICATE_VERIFY_FAILED"),
                (f"sslmode=require&sslrootcert={other}", HOST, "CERTIFICATE_VERIFY_FAILED"),
                (f"sslmode=verify-full&sslrootcert={absent}", HOST, "absent.crt: No such file"),
            ):
                found = await problem_of(through(urls.runtime, port, query, host))
                assert bool(found) == bool(says), (query, found)
                assert says in found, query
            await check_migration(urls, port, trusted)


async def check_migration(urls: ServiceUrls, port: int, trusted: Path) -> None:
    """A migration of a current schema changes nothing, over TLS too."""
    query = f"sslmode=verify-full&sslrootcert={trusted}"
    await migrate(through(urls.owner, port, query), migrations_of(BalanceSettings))


async def test_a_new_authority_of_postgresql_is_used_by_the_next_session(
    databases: Databases, tmp_path: Path
) -> None:
    old, new = Authority(), Authority()
    server = write_certificate(tmp_path / "server", old)
    trusted = tmp_path / "server" / "ca.crt"
    with databases.clone("balance") as urls:
        address = make_url(urls.runtime)
        assert address.host is not None
        assert address.port is not None
        async with tls_in_front_of(address.host, address.port, server, postgres=True) as port:
            query = f"sslmode=verify-full&sslrootcert={trusted}"
            url = through(urls.runtime, port, query)
            database = open_pools(url, application_name="tls test", pool_size=4)
            async with database.probe.connect():
                write_certificate(server, new, old)
            with pytest.raises(ssl.SSLCertVerificationError):
                async with database.reads.connect():
                    pass
            write_trusted(server, new)
            async with database.reads.connect():
                await database.close()


@pytest.mark.parametrize(
    ("trusted", "host", "says"),
    [
        ("right", HOST, ""),
        ("wrong", HOST, "CERTIFICATE_VERIFY_FAILED"),
        ("right", "localhost", "CERTIFICATE_VERIFY_FAILED"),
    ],
)
async def test_the_certificate_of_redis_is_checked(
    valkey_server: ValkeyServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    trusted: str,
    host: str,
    says: str,
) -> None:
    monkeypatch.setattr("common.locking.redis.TIMEOUT_S", 30.0)
    authorities = {"right": Authority(), "wrong": Authority()}
    server = write_certificate(tmp_path / "server", authorities["right"])
    file = tmp_path / "ca.crt"
    file.write_text(authorities[trusted].pem)
    address = make_url(valkey_server.url)
    assert address.host is not None
    assert address.port is not None
    async with tls_in_front_of(address.host, address.port, server) as port:
        password = f":{address.password}@" if address.password else ""
        found = await connection_problem(f"rediss://{password}{host}:{port}/0?ssl_ca_certs={file}")
    assert bool(found) == bool(says), found
    assert says in found


async def test_sentinels_are_asked_over_tls_and_their_certificates_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Sentinels' certificates as well as the primary's."""
    monkeypatch.setattr("common.locking.redis.TIMEOUT_S", 30.0)
    right, wrong = Authority(), Authority()
    directory = write_certificate(tmp_path / "right", right)
    other = write_certificate(tmp_path / "wrong", wrong)
    async with AsyncExitStack() as exits:
        primary = exits.enter_context(ValkeyServer(tmp_path / "primary"))
        password = password_of(primary)
        primary_port = await exits.enter_async_context(
            tls_or_plaintext(HOST, primary.port, directory)
        )
        sentinel = SentinelServer(tmp_path / "sentinel", primary_port, password)
        exits.enter_context(sentinel)

        async def problem(certificate: Path, trusted: Path) -> str:
            async with tls_in_front_of(HOST, sentinel.port, certificate) as port:
                url = f"rediss+sentinel://:{password}@{HOST}:{port}/{SERVICE}"
                return await connection_problem(f"{url}?ssl_ca_certs={trusted / 'ca.crt'}")

        await until(lambda: problem(directory, directory), lambda found: found == "")
        assert "CERTIFICATE_VERIFY_FAILED" in await problem(other, directory)
        # The Sentinel is believed, and the primary is not.
        assert "CERTIFICATE_VERIFY_FAILED" in await problem(other, other)
