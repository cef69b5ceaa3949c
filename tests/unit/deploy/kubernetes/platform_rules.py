"""Rules about what the cluster is told of pods and settings, and would not complain of."""

from __future__ import annotations

from collections.abc import Iterator

from tests.unit.deploy.kubernetes.manifests import Overlay, strings, told
from tests.unit.deploy.kubernetes.rule import rule


@rule
def config_maps_of_pods_cannot_change(overlay: Overlay) -> Iterator[str]:
    """They are named by their content; a rollback has to find them as they were."""
    used = {text for each in overlay.workloads for _, text in strings(each.pod)}
    for each in overlay.of_kind("ConfigMap"):
        if each["metadata"]["name"] in used and each.get("immutable") is not True:
            yield f"{told(each)}: may be changed under the pods that read it"
