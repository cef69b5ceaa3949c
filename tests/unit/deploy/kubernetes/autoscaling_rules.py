"""Rules about autoscalers: what they scale, by what they measure, and how fast."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from tests.unit.deploy.kubernetes.manifests import Object, Overlay, Workload, told
from tests.unit.deploy.kubernetes.rule import rule

SCALED_LEAST: Final = 3
UTILIZATION: Final = (50, 90)
"""Of what is asked for, in %: below, most of it is idle; above, new replicas come too late."""


@rule
def scaling_is_in_one_hand(overlay: Overlay) -> Iterator[str]:
    scaled = set()
    for scaler in overlay.of_kind("HorizontalPodAutoscaler"):
        spec, target = scaler["spec"], scaler["spec"]["scaleTargetRef"]
        found = overlay.find(target["kind"], target["name"])
        if found is None:
            yield f"{told(scaler)}: scales {target['name']}, which does not exist"
            continue
        scaled.add(target["name"])
        yield from _of_scaled(scaler, found)
        if not SCALED_LEAST <= spec.get("minReplicas", 1) < spec["maxReplicas"]:
            yield f"{told(scaler)}: its least and most replicas do not fit"
        for way in ("scaleUp", "scaleDown"):
            behavior = spec.get("behavior", {}).get(way, {})
            if not behavior.get("policies") or "stabilizationWindowSeconds" not in behavior:
                yield f"{told(scaler)}: {way} is as it likes"
    for each in overlay.servers:
        if overlay.name == "production" and each.name not in scaled:
            yield f"{each.told}: is not scaled"
        if each.name not in scaled and "replicas" not in each.spec:
            yield f"{each.told}: has neither replicas nor a scaler"


def _of_scaled(scaler: Object, found: Object) -> Iterator[str]:
    if "replicas" in found["spec"]:
        yield f"{told(scaler)}: {told(found)} sets its own replicas"
    if scaler["spec"]["scaleTargetRef"].get("apiVersion") != found["apiVersion"]:
        yield f"{told(scaler)}: there is no {told(found)} of the version that it scales"
    metrics = scaler["spec"].get("metrics", [])
    if [metric.get("type") for metric in metrics] != ["ContainerResource"]:
        yield f"{told(scaler)}: does not look at one container's processor alone"
        return
    measured = metrics[0]["containerResource"]
    yield from _of_measured(told(scaler), measured, Workload(found))


def _of_measured(where: str, measured: Object, scaled: Workload) -> Iterator[str]:
    containers = {one["name"]: one for one in scaled.containers}
    if measured["container"] not in containers:
        yield f"{where}: looks at container {measured['container']}, which does not exist"
    elif measured["name"] not in containers[measured["container"]]["resources"]["requests"]:
        yield f"{where}: counts in parts of a {measured['name']} that nobody asks for"
    least, most = UTILIZATION
    utilization = measured["target"].get("averageUtilization", 0)
    if measured["name"] != "cpu" or measured["target"]["type"] != "Utilization":
        yield f"{where}: does not look at one container's processor alone"
    elif not least <= utilization <= most:
        yield f"{where}: scales at {utilization} %, not {least} to {most}"
