"""Rules about files and references: what a pod names exists, and is mounted where it looks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Final

from tests.unit.deploy.kubernetes.engine import (
    LASTING,
    WORKLOADS,
    bad,
    named,
    of_kind,
    removed,
    rule,
)
from tests.unit.deploy.kubernetes.manifests import GONE, PRODUCTION, Item, Object, strings
from tests.unit.deploy.kubernetes.setting_rules import SECRETS

_PATH: Final = re.compile(r"(?:^|=)(/[^\s:]*)")
"""In a word of a command, or as a variable's value."""
INITDB: Final = "/docker-entrypoint-initdb.d"
POSTGRES_DATA: Final = "/var/lib/postgresql"
"""The directory of PostgreSQL's image for its data, from release 18 on."""
WRITTEN: Final = {
    "postgres": (POSTGRES_DATA, "/var/run/postgresql", "/tmp", "/dev/shm"),
    "redis": ("/tmp",),
    "gateway": ("/tmp", "/var/lib/tally-gateway"),
}
"""Where the servers of `local` write; their root file systems are read-only."""
POSTGRES, REDIS, GATEWAY = "StatefulSet/postgres", "StatefulSet/redis", "Deployment/gateway"
ORDER: Final = "Deployment/order"


def volumes(each: Item) -> dict[str, Object]:
    """The volumes of a pod by name, with those of its StatefulSet's claims."""
    claims = each.values("spec.volumeClaimTemplates[*].metadata.name")
    return {
        **{name: {"persistentVolumeClaim": {}} for name in claims},
        **{volume["name"]: volume for volume in each.get("pod.volumes", [])},
    }


def mounts(each: Item, container: Object) -> dict[str, Object]:
    """The volumes of a container by mount path, without mounts of a part of a volume."""
    found = volumes(each)
    return {
        mount["mountPath"]: found.get(mount["name"], {})
        for mount in container.get("volumeMounts", [])
        if not mount.get("subPath")
    }


def files(each: Item, volume: Object) -> set[str] | None:
    """The files of a Secret or ConfigMap volume; None for a volume of another kind."""
    source = volume.get("secret") or volume.get("configMap")
    if source is None:
        return None
    if "items" in source:
        return {item["path"] for item in source["items"]}
    if "secret" in volume:
        return set(SECRETS.get(source["secretName"], {}))
    found = each.overlay.find("ConfigMap", source["name"])
    return set(found.get("data", {}) if found else {})


def named_paths(each: Item, container: Object) -> Iterator[tuple[str, str]]:
    """The absolute paths in a container's command and variables, with their places."""
    words = [*container.get("command", []), *container.get("args", [])]
    places = [
        *(("its command", word) for word in words),
        *each.overlay.environment(container).items(),
    ]
    for place, text in places:
        yield from ((place, path) for path in _PATH.findall(text))


@rule(
    WORKLOADS,
    bad("/etc/valkey/x.conf", "container.command[1]", REDIS),
    bad("/etc/redis", "container.volumeMounts[/etc/valkey].mountPath", REDIS),
    bad(["--dir", "/data"], "container.args", REDIS),
    bad("/etc/postgres/superuser/x", "env[POSTGRES_PASSWORD_FILE].value", POSTGRES),
    bad(GONE, "pod.volumes[superuser].secret.items", POSTGRES),
    bad("redis", "pod.volumes[secret-key].secret.secretName", GATEWAY),
    bad([], "container.volumeMounts"),
)
def paths_are_mounted(each: Item) -> Iterator[str]:
    """Each absolute path of a command or variable; in a Secret or ConfigMap, one of its files."""
    for container in each.containers:
        mounted = mounts(each, container)
        for source, path in named_paths(each, container):
            over = [one for one in mounted if PurePosixPath(path).is_relative_to(one)]
            if not over:
                yield f"{source} names {path}, where nothing is mounted"
                continue
            mount = max(over, key=len)
            found = files(each, mounted[mount])
            inner = str(PurePosixPath(path).relative_to(mount))
            if found is not None and path != mount and inner not in found:
                yield f"{source} names {path}, which is not one of {sorted(found)}"


@rule(
    LASTING,
    bad("/run/pg", "container.volumeMounts[/var/run/postgresql].mountPath", POSTGRES),
    bad("secret-key", "container.volumeMounts[/var/lib/tally-gateway].name", GATEWAY),
)
def servers_of_local_can_write(each: Item) -> list[str]:
    """Their root file systems are read-only."""
    mounted = mounts(each, each.containers[0])
    return [
        f"cannot write to {path}"
        for path in WRITTEN.get(each.service, ())
        if not mounted.get(path, {}).keys() & {"emptyDir", "persistentVolumeClaim"}
    ]


@rule(
    named(POSTGRES),
    bad("/var/lib/pg", f"container.volumeMounts[{POSTGRES_DATA}].mountPath"),
    bad("tmp", f"container.volumeMounts[{POSTGRES_DATA}].name"),
    bad("/tmp/data", "env[PGDATA].value"),
    bad("/initdb.d", f"container.volumeMounts[{INITDB}].mountPath"),
    bad([], "container.env"),
)
def postgres_keeps_its_data_and_makes_the_roles(each: Item) -> Iterator[str]:
    """Else the databases vanish with the pod, or no service can log in."""
    mounted = mounts(each, each.containers[0])
    if "persistentVolumeClaim" not in mounted.get(POSTGRES_DATA, {}):
        yield "keeps its data in the pod"
    directory = each.environment.get("PGDATA", POSTGRES_DATA)
    if not PurePosixPath(directory).is_relative_to(POSTGRES_DATA):
        yield "PGDATA is not in its volume"
    scripts = files(each, mounted.get(INITDB, {})) or set()
    if not any(name.endswith(".sql") for name in scripts):
        yield "has no script for the roles and databases"
    if not each.environment.get("POSTGRES_PASSWORD_FILE"):
        yield "has no password"


@rule(
    WORKLOADS,
    bad("orders", "pod.volumes[secrets].secret.secretName"),
    bad("x", "pod.volumes[roles].secret.items[0].key", POSTGRES),
    removed("ConfigMap/order-settings*", ORDER),
    removed("PriorityClass/*", ORDER),
    bad("pg", "spec.serviceName", POSTGRES),
)
def references_exist(each: Item) -> Iterator[str]:
    """A pod that names a missing object waits for it for ever."""
    known = {f"{each.service}-runtime", f"{each.service}-owner"}
    known |= set() if each.overlay.name == PRODUCTION else SECRETS.keys()
    for secret in filter(None, each.values("pod.volumes[*].secret")):
        name = secret["secretName"]
        if name not in known:
            yield f"there is no Secret {name}"
        for item in secret.get("items", []):
            if item["key"] not in SECRETS.get(name, {}):
                yield f"there is no {item['key']} in Secret {name}"
    for kind, path in (
        ("ConfigMap", "pod.volumes[*].configMap.name"),
        ("ConfigMap", "container.envFrom[*].configMapRef.name"),
        ("PriorityClass", "pod.priorityClassName"),
        ("Service", "spec.serviceName"),
    ):
        for name in filter(None, each.values(path)):
            if each.overlay.find(kind, name) is None:
                yield f"there is no {kind} {name}"


@rule(WORKLOADS, bad(GONE, "pod.volumes[tmp]"), bad(GONE, "container.volumeMounts[/tmp]"))
def mounts_and_volumes_are_pairs(each: Item) -> list[str]:
    """A mount without a volume is refused; a volume without a mount is a mistake."""
    return sorted({*each.values("container.volumeMounts[*].name")} ^ volumes(each).keys())


@rule(
    of_kind("ConfigMap", "payment-settings*"),
    bad(GONE, "container.envFrom[1]", "Deployment/payment", "ConfigMap/payment-settings"),
    bad(GONE, "immutable"),
    bad(False, "immutable", "ConfigMap/tally-settings*"),
)
def config_maps_are_used_and_cannot_change(each: Item) -> Iterator[str]:
    """One that no pod reads has no effect; a rollback needs the others as they were."""
    pods = (one.get("pod") for one in each.overlay.workloads)
    if not any(text == each.name for pod in pods for _, text in strings(pod)):
        yield "is read by no pod"
    if each.get("immutable") is not True:
        yield "can be changed under the pods that read it"
