"""Rules about files and references: what a pod names exists, and is mounted where it looks."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Final

from tests.unit.deploy.kubernetes.engine import (
    OWN,
    SET,
    WORKLOADS,
    Check,
    Rule,
    bad,
    equal,
    named,
    of_kind,
    removed,
    rule,
)
from tests.unit.deploy.kubernetes.manifests import GONE, Item, Object, strings
from tests.unit.deploy.kubernetes.setting_rules import SECRETS

_PATH: Final = re.compile(r"(?:^|=)(/[^\s:]*)")
"""In a word of a command, or as a variable's value."""
KEPT, SCRATCH, DIRECTORY, FILE = "kept", "scratch", "directory of files", "file"
"""What is at a path: a claim, an emptyDir, a Secret or ConfigMap, one of its files."""
NEEDED: Final = {
    "postgres": {
        # The directory of PostgreSQL's image for its data, from release 18 on.
        "/var/lib/postgresql": KEPT,
        "/var/run/postgresql": SCRATCH,
        "/tmp": SCRATCH,
        "/dev/shm": SCRATCH,
        # Makes the roles and databases.
        "/docker-entrypoint-initdb.d/roles.sql": FILE,
    },
    "gateway": {"/tmp": SCRATCH, "/var/lib/tally-gateway": SCRATCH},
}
"""What a program uses without naming it, else /tmp: its root file system is read-only."""
OF_OPERATORS: Final = {"paused-methods": {"methods"}}
"""ConfigMaps that people make while Tally runs, and their keys: they are optional."""
REFERENCES: Final = (
    ("ConfigMap", "pod.volumes[*].configMap.name"),
    ("ConfigMap", "container.envFrom[*].configMapRef.name"),
    ("PriorityClass", "pod.priorityClassName"),
    ("Service", "spec.serviceName"),
    ("ServiceAccount", "pod.serviceAccountName"),
)
POSTGRES, REDIS, GATEWAY = "StatefulSet/postgres", "StatefulSet/redis", "Deployment/gateway"
ORDER: Final = "Deployment/order"
DATA: Final = "container.volumeMounts[/var/lib/postgresql]"


def volumes(each: Item) -> dict[str, Object]:
    """The volumes of a pod by name, with those of its StatefulSet's claims."""
    claims = each.values("spec.volumeClaimTemplates[*].metadata.name")
    return {
        **{name: {"persistentVolumeClaim": {}} for name in claims},
        **{volume["name"]: volume for volume in each.get("pod.volumes", [])},
    }


def files(each: Item, volume: Object) -> list[str]:
    """The files of a Secret or ConfigMap volume."""
    if secret := volume.get("secret"):
        data = SECRETS.get(secret["secretName"], {})
        items = secret.get("items") or [{"key": key, "path": key} for key in data]
        return [item["path"] for item in items if item["key"] in data]
    name = volume["configMap"]["name"]
    found = each.overlay.find("ConfigMap", name)
    return [*(found.get("data", {}) if found else OF_OPERATORS.get(name, ()))]


def mounted(each: Item) -> dict[str, str]:
    """What is mounted in a pod's container, by path."""
    found, known = dict[str, str](), volumes(each)
    for mount in each.values("container.volumeMounts[*]"):
        path, volume = mount["mountPath"], known.get(mount["name"], {})
        if volume.keys() & {"secret", "configMap"}:
            found |= {f"{path}/{file}": FILE for file in files(each, volume)} | {path: DIRECTORY}
        else:
            found[path] = SCRATCH if "emptyDir" in volume else KEPT
    return found


@rule(
    WORKLOADS,
    bad("/etc/valkey/x.conf", "container.command[1]", REDIS),
    bad("/etc/redis", "container.volumeMounts[/etc/valkey].mountPath", REDIS),
    bad(["--dir", "/data"], "container.args", REDIS),
    bad("/etc/postgres/superuser/x", "env[POSTGRES_PASSWORD_FILE].value", POSTGRES),
    bad("redis", "pod.volumes[secret-key].secret.secretName", GATEWAY),
    bad("/etc/tally/paused-methods/names", "env[TALLY_PAUSE_FILE].value"),
    bad([], "container.volumeMounts"),
)
def paths_are_mounted(each: Item) -> list[str]:
    """Each absolute path of a command or variable; in a Secret or ConfigMap, one of its files."""
    found = mounted(each)
    writable = [path for path, what in found.items() if what in (KEPT, SCRATCH)]
    words = [
        *each.values("container.command[*]"),
        *each.values("container.args[*]"),
        *each.environment.values(),
    ]
    return [
        f"there is no {path}"
        for path in (path for word in words for path in _PATH.findall(word))
        if path not in found
        and not any(PurePosixPath(path).is_relative_to(one) for one in writable)
    ]


@rule(
    WORKLOADS,
    bad("/var/lib/pg", f"{DATA}.mountPath", POSTGRES),
    bad("tmp", f"{DATA}.name", POSTGRES),
    bad("/initdb.d", "container.volumeMounts[/docker-entrypoint-initdb.d].mountPath", POSTGRES),
    bad("x", "pod.volumes[roles].secret.items[0].key", POSTGRES),
    bad("secret-key", "container.volumeMounts[/var/lib/tally-gateway].name", GATEWAY),
    bad(GONE, "container.volumeMounts[/tmp]"),
)
def what_a_program_needs_is_mounted(each: Item) -> list[str]:
    """Else the data vanishes with the pod, no service can log in, or a program cannot write."""
    found = mounted(each)
    needed = NEEDED.get(each.service, {"/tmp": SCRATCH})
    return [f"{path} is not {what}" for path, what in needed.items() if found.get(path) != what]


postgres_has_its_password_and_data = Rule(
    "In its volume, which is not under a directory of another name.",
    named(POSTGRES),
    Check("env[POSTGRES_PASSWORD_FILE].value", SET, bad([], "container.env")),
    Check("env[PGDATA].value", equal(None), bad("/tmp/data")),
)

tmp_is_bounded = Rule(
    "A full disk of a node ends all of its pods.",
    OWN,
    Check("pod.volumes[tmp].emptyDir.sizeLimit", SET, bad({}, "pod.volumes[tmp].emptyDir")),
)


@rule(WORKLOADS, bad(GONE, "pod.volumes[tmp]"), bad(GONE, "container.volumeMounts[/tmp]"))
def mounts_and_volumes_are_pairs(each: Item) -> list[str]:
    """A mount without a volume is refused; a volume without a mount is a mistake."""
    return sorted({*each.values("container.volumeMounts[*].name")} ^ volumes(each).keys())


@rule(
    WORKLOADS,
    removed("ConfigMap/order-settings*", ORDER),
    removed("PriorityClass/*", ORDER),
    removed("ServiceAccount/order", ORDER),
    bad("pg", "spec.serviceName", POSTGRES),
    bad(GONE, "pod.volumes[paused-methods].configMap.optional", ORDER),
)
def references_exist(each: Item) -> list[str]:
    """A pod that names a missing object waits for it for ever, unless it is optional."""
    config_maps = each.values("pod.volumes[*].configMap")
    optional = {one["name"] for one in config_maps if one and one.get("optional")}
    return [
        f"there is no {kind} {name}"
        for kind, path in REFERENCES
        for name in filter(None, each.values(path))
        if each.overlay.find(kind, name) is None and name not in optional & OF_OPERATORS.keys()
    ]


def is_read(each: Item) -> bool:
    pods = (one.get("pod") for one in each.overlay.workloads)
    return any(text == each.name for pod in pods for _, text in strings(pod))


config_maps_are_used_and_cannot_change = Rule(
    "One that no pod reads has no effect; a rollback needs the others as they were.",
    # Grafana's sidecar reads those with its label, and follows changes.
    of_kind("ConfigMap").where(
        lambda each: "grafana_dashboard" not in each.get("metadata.labels", {}),
        "ConfigMap/payment-settings*",
    ),
    Check(
        is_read,
        True,
        bad(GONE, "container.envFrom[1]", "Deployment/payment", "ConfigMap/payment-settings"),
    ),
    Check("immutable", True, bad(GONE), bad(False, on="ConfigMap/tally-settings*")),
)
