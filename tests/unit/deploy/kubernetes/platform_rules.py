"""Rules about what the cluster is told of pods and settings, and would not complain of."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from tests.unit.deploy.kubernetes.manifests import NAMESPACE, Overlay, strings, told
from tests.unit.deploy.kubernetes.rule import rule

MEMORY_LEAST: Final = 256 * 1024**2
"""A replica without calls takes 115 MiB."""
_UNITS: Final = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "k": 10**3, "M": 10**6, "G": 10**9}


@rule
def config_maps_of_pods_cannot_change(overlay: Overlay) -> Iterator[str]:
    """They are named by their content; a rollback has to find them as they were."""
    used = {text for each in overlay.workloads for _, text in strings(each.pod)}
    for each in overlay.of_kind("ConfigMap"):
        if each["metadata"]["name"] in used and each.get("immutable") is not True:
            yield f"{told(each)}: may be changed under the pods that read it"


@rule
def namespace_refuses_pods_with_privileges(overlay: Overlay) -> Iterator[str]:
    labels = overlay.the("Namespace", NAMESPACE)["metadata"]["labels"]
    for mode in ("enforce", "audit", "warn"):
        if labels.get(f"pod-security.kubernetes.io/{mode}") != "restricted":
            yield f"Namespace/{NAMESPACE}: does not {mode} what pods may not have"


@rule
def prometheus_is_told_where(overlay: Overlay) -> Iterator[str]:
    for each in overlay.servers:
        wanted = {"scrape": "true", "port": str(each.ports.get("metrics")), "path": "/metrics"}
        annotations = each.template["metadata"].get("annotations", {})
        for name, value in wanted.items():
            if annotations.get(f"prometheus.io/{name}") != value:
                yield f"{each.told}: prometheus.io/{name} is not {value}"


@rule
def nothing_is_held_back(overlay: Overlay) -> Iterator[str]:
    """Each is taken by the cluster, and then nothing happens."""
    for each in overlay.workloads:
        if each.spec.get("suspend"):
            yield f"{each.told}: is suspended"
        if each.spec.get("paused"):
            yield f"{each.told}: is paused"
        if each.spec.get("replicas", 1) < 1 or each.spec.get("parallelism", 1) < 1:
            yield f"{each.told}: runs no pod"


@rule
def memory_is_enough(overlay: Overlay) -> Iterator[str]:
    for each in overlay.servers + overlay.migrations:
        resources = each.containers[0].get("resources", {})
        limit = size(resources.get("limits", {}).get("memory", "0"))
        if limit < MEMORY_LEAST:
            yield f"{each.told}: is killed at {limit >> 20} MiB"
        if size(resources.get("requests", {}).get("memory", "0")) < MEMORY_LEAST // 2:
            yield f"{each.told}: asks for less memory than it takes without calls"


def size(quantity: str) -> int:
    """Bytes of a quantity in Kubernetes' notation."""
    match = re.fullmatch(r"(\d+)([KMG]i|[kMG])?", quantity)
    assert match is not None, quantity
    return int(match[1]) * _UNITS.get(match[2] or "", 1)


@rule
def production_lists_no_methods(overlay: Overlay) -> Iterator[str]:
    """Reflection is for grpcurl: where one tries things out, and only there."""
    for each in overlay.servers:
        served = overlay.setting(each, "reflection").lower() == "true"
        if served is (overlay.name == "production"):
            yield f"{each.told}: reflection is {'on' if served else 'off'} in {overlay.name}"
