"""The servers of the `local` overlay with their Secrets, and the addresses in the Secrets."""

from __future__ import annotations

from pathlib import Path

import asyncpg
import pytest
import redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from deploy.kubernetes.manifests import objects
from deploy.kubernetes.secrets import POSTGRES, REDIS, local_secret_objects
from deploy.local.postgres import PostgresServer
from deploy.local.processes import Child, free_port
from deploy.local.valkey import binary


async def test_role_reaches_its_own_database_and_no_other(tmp_path: Path) -> None:
    """On its own server: the script sets the passwords of roles that other tests use."""
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


def redis_as_rendered(directory: Path, secrets: dict[str, dict[str, str]]) -> list[str | Path]:
    """The pod's command, with the installed program and with its mounts in ``directory``."""
    (rendered,) = (
        each["spec"]["template"]["spec"]
        for each in objects("local")
        if (each["kind"], each["metadata"]["name"]) == ("StatefulSet", "redis")
    )
    (container,) = rendered["containers"]
    volumes = {volume["name"]: volume for volume in rendered["volumes"]}
    places: dict[str, Path] = {}
    for mount in container["volumeMounts"]:
        volume = volumes[mount["name"]]
        place = places[mount["mountPath"]] = directory / mount["name"]
        place.mkdir()
        for key, text in secrets.get(volume.get("secret", {}).get("secretName"), {}).items():
            (place / key).write_text(text)

    def here(word: str) -> str:
        for mounted, place in places.items():
            if word == mounted or word.startswith(f"{mounted}/"):
                return f"{place}{word.removeprefix(mounted)}"
        return word

    words: list[str] = container["command"] + container["args"]
    assert words[0] == "valkey-server"
    return [binary(), *map(here, words[1:])]


def test_redis_as_rendered_requires_the_services_password(tmp_path: Path) -> None:
    secrets = {each["metadata"]["name"]: each["stringData"] for each in local_secret_objects()}
    port = free_port()
    child = Child(
        "valkey",
        # A pod has its own address; on this machine, others may listen on 6379.
        [*redis_as_rendered(tmp_path, secrets), "--port", str(port), "--bind", "127.0.0.1"],
        log_file=tmp_path / "valkey.log",
        env={"LC_ALL": "C"},
    )
    try:
        url = secrets["order-runtime"]["TALLY_REDIS_URL"].replace(REDIS, f"127.0.0.1:{port}")
        retry = Retry(ConstantBackoff(0.1), 300)
        with redis.Redis.from_url(
            url, retry=retry, retry_on_error=[redis.ConnectionError]
        ) as client:
            assert client.ping()
            for name, value in {
                "save": "",
                "appendonly": "no",
                "maxmemory": str(192 * 1024**2),
                "maxmemory-policy": "noeviction",
            }.items():
                assert client.config_get(name) == {name: value}, name
        stranger = redis.Redis(host="127.0.0.1", port=port)
        with stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()
    finally:
        child.stop()
