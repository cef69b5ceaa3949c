"""Rules about files: what a container is told to read or write is mounted, and is there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any, Final

from tests.unit.deploy.kubernetes.manifests import Object, Overlay, Workload
from tests.unit.deploy.kubernetes.rule import rule
from tests.unit.deploy.kubernetes.setting_rules import SECRETS

_PATH: Final = re.compile(r"(?:^|=)(/[^\s:]*)")
"""In a word of a command, or as a variable's value."""
INITDB: Final = "/docker-entrypoint-initdb.d"
POSTGRES_DATA: Final = "/var/lib/postgresql"
"""What PostgreSQL's image keeps its data under, from release 18 on."""
WRITTEN: Final = {
    "postgres": (POSTGRES_DATA, "/var/run/postgresql", "/tmp", "/dev/shm"),
    "redis": ("/tmp",),
    "gateway": ("/tmp", "/var/lib/tally-gateway"),
}
"""What the servers of `local` write to, with root file systems that nobody can write to."""


def _volumes(each: Workload) -> dict[str, Object]:
    claims: dict[str, Object] = {
        claim["metadata"]["name"]: {"persistentVolumeClaim": {}}
        for claim in each.spec.get("volumeClaimTemplates", [])
    }
    return claims | {volume["name"]: volume for volume in each.pod.get("volumes", [])}


def _mounts(each: Workload, container: Object) -> dict[str, Object]:
    """The volumes of a container by where they are; a mount of a part of one counts as none."""
    volumes = _volumes(each)
    return {
        mount["mountPath"]: volumes.get(mount["name"], {})
        for mount in container.get("volumeMounts", [])
        if not mount.get("subPath")
    }


def files(overlay: Overlay, volume: Object) -> set[str] | None:
    """The files that a Secret or ConfigMap lays out; None for what a container may write to."""
    source: Any
    if "secret" in volume:
        source = volume["secret"]
        keys = set(SECRETS.get(source["secretName"], {}))
    elif "configMap" in volume:
        source = volume["configMap"]
        keys = set((overlay.find("ConfigMap", source["name"]) or {}).get("data", {}))
    else:
        return None
    return {item["path"] for item in source["items"]} if "items" in source else keys


def _told_paths(overlay: Overlay, container: Object) -> Iterator[tuple[str, str]]:
    for word in [*container.get("command", []), *container.get("args", [])]:
        for path in _PATH.findall(word):
            yield "its command", path
    for name, value in overlay.environment(container).items():
        for path in _PATH.findall(value):
            yield name, path


@rule
def paths_are_mounted(overlay: Overlay) -> Iterator[str]:
    """Every absolute path that a container is told; of a Secret or ConfigMap, one of its files."""
    for each in overlay.workloads:
        for container in each.containers:
            mounts = _mounts(each, container)
            for told_by, path in _told_paths(overlay, container):
                where = f"{each.told}: {told_by} names {path}"
                over = [one for one in mounts if PurePosixPath(path).is_relative_to(one)]
                if not over:
                    yield f"{where}, where nothing is mounted"
                    continue
                mounted = max(over, key=len)
                found = files(overlay, mounts[mounted])
                if found is None or path == mounted:
                    continue
                if str(PurePosixPath(path).relative_to(mounted)) not in found:
                    yield f"{where}, and there is only {sorted(found)}"


@rule
def servers_of_their_own_can_write(overlay: Overlay) -> Iterator[str]:
    for each in overlay.lasting:
        mounts = _mounts(each, each.containers[0])
        for path in WRITTEN.get(each.service, ()):
            volume = mounts.get(path, {})
            if not volume.keys() & {"emptyDir", "persistentVolumeClaim"}:
                yield f"{each.told}: cannot write to {path}"


@rule
def postgres_keeps_its_data_and_makes_the_roles(overlay: Overlay) -> Iterator[str]:
    for each in overlay.lasting:
        if each.service != "postgres":
            continue
        container = each.containers[0]
        mounts, given = _mounts(each, container), overlay.environment(container)
        if "persistentVolumeClaim" not in mounts.get(POSTGRES_DATA, {}):
            yield f"{each.told}: forgets its data with the pod"
        if not PurePosixPath(given.get("PGDATA", POSTGRES_DATA)).is_relative_to(POSTGRES_DATA):
            yield f"{each.told}: PGDATA is not in its volume"
        scripts = files(overlay, mounts.get(INITDB, {})) or set()
        if not any(name.endswith(".sql") for name in scripts):
            yield f"{each.told}: makes no roles and databases when its volume is new"
        if not given.get("POSTGRES_PASSWORD_FILE"):
            yield f"{each.told}: has no password to begin with"
