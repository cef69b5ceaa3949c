"""Rules about images, commands, the namespace, and what else the cluster takes without an error."""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from typing import Final

from tests.unit.deploy.kubernetes.engine import (
    OBJECTS,
    OVERLAY,
    OWN,
    SERVERS,
    UNSET,
    WORKLOADS,
    Check,
    Must,
    Rule,
    added,
    at_least,
    bad,
    of_kind,
    removed,
    rule,
)
from tests.unit.deploy.kubernetes.manifests import GONE, LABEL, LOCAL, NAMESPACE, Item

MIB: Final = 2**20
UNITS: Final = {"": 1, "Ki": 2**10, "Mi": MIB, "Gi": 2**30, "k": 10**3, "M": 10**6, "G": 10**9}
JOB, GATEWAY = "Job/order-migrate-*", "Deployment/gateway"


def is_pinned(image: str) -> bool:
    version = re.fullmatch(r".+(:(?P<tag>[\w.-]+)|@sha256:[0-9a-f]{64})", image)
    return version is not None and version["tag"] != "latest"


images_are_pinned = Rule(
    "Else two pods of one release could run different images, and none needs another pull.",
    WORKLOADS,
    Check(
        "container.image",
        Must("pinned", is_pinned),
        bad("registry.example.com/tally:latest"),
        bad("postgres", on="StatefulSet/postgres"),
    ),
    Check("container.imagePullPolicy", "IfNotPresent", bad("Always")),
)


def program(each: Item) -> str:
    return str(each.get("container.image")).rsplit("/", 1)[-1].split(":")[0]


def image_of_a_server(each: Item) -> str:
    return str(each.overlay.the("Deployment/balance").get("container.image"))


servers_and_migrations_run_one_release = Rule(
    "A migration of another release makes another schema than the servers wait for.",
    OWN,
    Check(program, "tally", bad("tally-simulator:0.1.0", "container.image", overlay=LOCAL)),
    Check("container.image", image_of_a_server, bad("registry.example.com/tally:0.0.9")),
    Check(
        f"spec.template.metadata.labels[{LABEL}version]",
        lambda each: each.get("container.image").rpartition(":")[2],
        bad("0.0.9"),
    ),
)


def command(each: Item) -> list[str]:
    migrate = ["migrate"] if each.component == "migration" else []
    return ["python", "-m", f"{each.service}_service", *migrate]


commands_run_the_service = Rule(
    "The image has no default program.",
    OWN,
    Check(
        "container.command",
        command,
        bad("orders_service", "container.command[2]"),
        bad(GONE, "container.command[3]", JOB),
    ),
    Check("container.args", UNSET, bad(["migrate"])),
)


@rule(WORKLOADS, bad("deploy.gateway", "container.command[2]", GATEWAY))
def commands_are_modules(each: Item) -> list[str]:
    """A wrong module ends the container at once."""
    words = each.get("container.command", [])
    if words[:2] != ["python", "-m"]:
        return []
    try:
        found = importlib.util.find_spec(f"{words[2]}.__main__")
    except ModuleNotFoundError:
        found = None
    return [] if found else [f"there is no module {words[2]}"]


namespace_is_tally = Rule(
    "kubectl puts an object without a namespace into that of its user.",
    OBJECTS.where(lambda each: each.kind not in ("Namespace", "PriorityClass")),
    Check("metadata.namespace", NAMESPACE, bad(GONE)),
)


@rule(OVERLAY, removed(f"Namespace/{NAMESPACE}"))
def namespace_exists(whole: Item) -> list[str]:
    """No object can be made before it."""
    title = f"Namespace/{NAMESPACE}"
    return [] if whole.overlay.has(title) else [f"there is no {title}"]


namespace_refuses_pods_with_privileges = Rule(
    "The restricted Pod Security Standard, enforced for the pods of others too.",
    of_kind("Namespace", NAMESPACE),
    Check("metadata.labels[pod-security.kubernetes.io/enforce]", "restricted", bad(GONE)),
    Check("metadata.labels[pod-security.kubernetes.io/audit]", "restricted", bad(GONE)),
    Check("metadata.labels[pod-security.kubernetes.io/warn]", "restricted", bad("baseline")),
)


@rule(OVERLAY, added({"kind": "Service", "metadata": {"name": "order"}}))
def names_are_unique(whole: Item) -> list[str]:
    """The later of two objects of one name would replace the earlier."""
    found = Counter(each.title for each in whole.overlay.items)
    return [title for title, times in found.items() if times > 1]


prometheus_finds_the_metrics = Rule(
    "It scrapes the pods with these annotations.",
    SERVERS,
    Check("spec.template.metadata.annotations[prometheus.io/scrape]", "true", bad(GONE)),
    Check("spec.template.metadata.annotations[prometheus.io/path]", "/metrics", bad("/")),
    Check(
        "spec.template.metadata.annotations[prometheus.io/port]",
        lambda each: str(each.ports.get("metrics")),
        bad("9090"),
    ),
)

nothing_is_held_back = Rule(
    "The cluster accepts each of these, and then nothing happens.",
    WORKLOADS,
    Check("spec.suspend", UNSET, bad(True, on=JOB)),
    Check("spec.paused", UNSET, bad(True)),
    Check("spec.replicas", at_least(1, default=1), bad(0, on=GATEWAY)),
    Check("spec.parallelism", at_least(1, default=1), bad(0, on=JOB)),
)


def size(quantity: str | None) -> int:
    """The bytes of a quantity in Kubernetes' notation."""
    match = re.fullmatch(r"(\d+)([KMG]i|[kMG])?", quantity or "0")
    assert match is not None, quantity
    return int(match[1]) * UNITS[match[2] or ""]


memory_is_enough = Rule(
    "A replica without calls takes 115 MiB, and is killed at its limit.",
    OWN,
    Check(
        "container.resources.limits.memory",
        Must("at least 256 MiB", lambda quantity: size(quantity) >= 256 * MIB),
        bad("64Mi"),
        bad("128M", on=JOB),
    ),
    Check(
        "container.resources.requests.memory",
        Must("at least 128 MiB", lambda quantity: size(quantity) >= 128 * MIB),
        bad("64Mi"),
    ),
)
