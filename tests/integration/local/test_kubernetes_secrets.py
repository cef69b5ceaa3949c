"""The script that PostgreSQL's image runs, and the addresses that the services are given."""

from __future__ import annotations

from pathlib import Path

import asyncpg
import pytest

from deploy.kubernetes.secrets import POSTGRES, local_secret_objects
from deploy.local.postgres import PostgresServer


async def test_every_role_reaches_its_own_database_and_no_other(tmp_path: Path) -> None:
    """On a server of its own: the script sets the passwords of roles that others log in as."""
    found = {each["metadata"]["name"]: each["stringData"] for each in local_secret_objects()}
    with PostgresServer(tmp_path / "postgres", durable=False) as server:
        server.run_sql(found["postgres"]["roles.sql"])
        urls = [
            value.replace(POSTGRES, f"127.0.0.1:{server.port}")
            for data in found.values()
            for value in data.values()
            if value.startswith("postgresql://")
        ]
        assert len(urls) == 12
        databases = {url.rpartition("/")[2] for url in urls}
        for url in urls:
            address, _, own = url.rpartition("/")
            connection = await asyncpg.connect(url)
            assert await connection.fetchval("SELECT current_database()") == own
            await connection.close()
            for other in databases - {own}:
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await asyncpg.connect(f"{address}/{other}")
