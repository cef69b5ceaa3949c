"""What breaks the rules about files, one thing wrong at a time."""

from __future__ import annotations

from typing import Any, Final

from tests.unit.deploy.kubernetes.breaking import LOCAL, MULTI, Broken, Control, container, pod
from tests.unit.deploy.kubernetes.manifests import Overlay, Workload

_POSTGRES: Final = ("StatefulSet", "postgres", "containers", 0)
_REDIS: Final = ("StatefulSet", "redis", "containers", 0)


def _changed(kind: str, of: str, path: str, **changes: str) -> Broken:
    """Change the one mount at a path."""

    def broken(overlay: Overlay) -> None:
        mounts = Workload(overlay.the(kind, of)).containers[0]["volumeMounts"]
        next(one for one in mounts if one["mountPath"] == path).update(changes)

    return broken


def _volume(kind: str, name: str, volume: str, **content: Any) -> Broken:
    """Give a volume another content."""

    def broken(overlay: Overlay) -> None:
        volumes = Workload(overlay.the(kind, name)).pod["volumes"]
        found = next(one for one in volumes if one["name"] == volume)
        found.clear()
        found.update({"name": volume}, **content)

    return broken


CONTROLS: Final = [
    Control(
        "paths_are_mounted",
        "StatefulSet/redis: its command names /etc/valkey/redis.conf, and there is only",
        pod(*_REDIS, "command", 1, value="/etc/valkey/redis.conf"),
        overlay=LOCAL,
    ),
    Control(
        "paths_are_mounted",
        "StatefulSet/redis: its command names /etc/valkey/valkey.conf, where nothing is mounted",
        _changed("StatefulSet", "redis", "/etc/valkey", mountPath="/etc/redis"),
        overlay=MULTI,
    ),
    Control(
        "paths_are_mounted",
        "StatefulSet/redis: its command names /data, where nothing is mounted",
        pod(*_REDIS, "args", value=["--dir", "/data"]),
        overlay=LOCAL,
    ),
    Control(
        "paths_are_mounted",
        "StatefulSet/postgres: POSTGRES_PASSWORD_FILE names /etc/postgres/superuser/superuser-pass",
        pod(*_POSTGRES, "env", 0, "value", value="/etc/postgres/superuser/superuser-password"),
        overlay=LOCAL,
    ),
    Control(
        "paths_are_mounted",
        "StatefulSet/postgres: POSTGRES_PASSWORD_FILE names /etc/postgres/superuser/password, and",
        _volume("StatefulSet", "postgres", "superuser", secret={"secretName": "postgres"}),
        overlay=LOCAL,
    ),
    Control(
        "paths_are_mounted",
        "Deployment/gateway: its command names /etc/tally-gateway/secret-key, and there is only",
        _volume("Deployment", "gateway", "secret-key", secret={"secretName": "redis"}),
        overlay=LOCAL,
    ),
    Control(
        "paths_are_mounted",
        "Deployment/order: TALLY_SECRETS_DIR names /etc/tally/secrets, where nothing is mounted",
        container("order", "volumeMounts", value=[]),
    ),
    Control(
        "servers_of_their_own_can_write",
        "StatefulSet/postgres: cannot write to /var/run/postgresql",
        _changed("StatefulSet", "postgres", "/var/run/postgresql", mountPath="/run/postgres"),
        overlay=LOCAL,
    ),
    Control(
        "servers_of_their_own_can_write",
        "Deployment/gateway: cannot write to /var/lib/tally-gateway",
        _changed("Deployment", "gateway", "/var/lib/tally-gateway", name="secret-key"),
        overlay=LOCAL,
    ),
    Control(
        "postgres_keeps_its_data_and_makes_the_roles",
        "StatefulSet/postgres: forgets its data",
        _changed("StatefulSet", "postgres", "/var/lib/postgresql", mountPath="/var/lib/pg"),
        overlay=LOCAL,
    ),
    Control(
        "postgres_keeps_its_data_and_makes_the_roles",
        "StatefulSet/postgres: forgets its data",
        _changed("StatefulSet", "postgres", "/var/lib/postgresql", name="tmp"),
        overlay=MULTI,
    ),
    Control(
        "postgres_keeps_its_data_and_makes_the_roles",
        "StatefulSet/postgres: PGDATA is not in its volume",
        pod(*_POSTGRES, "env", 1, value={"name": "PGDATA", "value": "/tmp/data"}),
        overlay=LOCAL,
    ),
    Control(
        "postgres_keeps_its_data_and_makes_the_roles",
        "StatefulSet/postgres: makes no roles",
        _changed("StatefulSet", "postgres", "/docker-entrypoint-initdb.d", mountPath="/initdb.d"),
        overlay=LOCAL,
    ),
    Control(
        "postgres_keeps_its_data_and_makes_the_roles",
        "StatefulSet/postgres: has no password",
        pod(*_POSTGRES, "env", value=[]),
        overlay=LOCAL,
    ),
]
