"""Rules about pods: ports, resources, security, spreading, ending."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from common.db.engines import CLOSE_S
from common.rpc.server import CLEAN_UP_S
from common.tasks import STOP_S
from common.tracing import FLUSH_S
from order_service.saga.runner import SagaLimits
from tests.unit.deploy.kubernetes.manifests import (
    LABEL,
    METRICS_PORT,
    PORTS,
    SERVICES,
    Overlay,
    Workload,
    selects,
)
from tests.unit.deploy.kubernetes.rule import rule

MARGIN_S: Final = 5


@rule
def every_service_has_its_server(overlay: Overlay) -> Iterator[str]:
    """Without this, every other rule would hold for an overlay that runs nothing."""
    for found, of in ((overlay.servers, "server"), (overlay.migrations, "migration")):
        if sorted(each.service for each in found) != sorted(SERVICES):
            yield f"{of}: there is not one {of} for each of {SERVICES}"
    for each in overlay.servers:
        if (each.kind, each.name) != ("Deployment", each.service):
            yield f"{each.told}: a server is a Deployment named after its service"


@rule
def ports_are_those_bound(overlay: Overlay) -> Iterator[str]:
    for each in overlay.servers:
        wanted = {"grpc": PORTS[each.service], "metrics": METRICS_PORT}
        if each.ports != wanted:
            yield f"{each.told}: its ports are {each.ports}, not {wanted}"
        if overlay.setting(each, "bind") != f"0.0.0.0:{PORTS[each.service]}":
            yield f"{each.told}: TALLY_BIND is not its grpc port on every address"
        if overlay.setting(each, "metrics_port") != str(each.ports.get("metrics")):
            yield f"{each.told}: TALLY_METRICS_PORT is not its metrics port"


@rule
def resources_are_asked_for(overlay: Overlay) -> Iterator[str]:
    for each in overlay.workloads:
        for container in each.containers:
            resources = container.get("resources", {})
            for name in ("cpu", "memory"):
                if name not in resources.get("requests", {}):
                    yield f"{each.told}: asks for no {name}"
            if "memory" not in resources.get("limits", {}):
                yield f"{each.told}: has no limit of memory"


@rule
def test_replicas_are_those_of_the_requirement(overlay: Overlay) -> Iterator[str]:
    """R18: four replicas of each service, with half a processor and 512 MB each."""
    if overlay.name != "multi-replica-test":
        return
    for each in overlay.servers:
        limits = each.containers[0]["resources"]["limits"]
        if each.spec.get("replicas") != 4:
            yield f"{each.told}: does not have four replicas"
        if limits.get("cpu") != "500m" or limits.get("memory") not in ("512M", "512Mi"):
            yield f"{each.told}: is not limited to half a processor and 512 MB"


@rule
def pods_have_no_privileges(overlay: Overlay) -> Iterator[str]:
    for each in overlay.workloads:
        yield from _of_pod(each)
        for container in each.containers:
            own = container.get("securityContext", {})
            if own.get("allowPrivilegeEscalation") is not False:
                yield f"{each.told}: may gain privileges"
            if own.get("capabilities", {}).get("drop") != ["ALL"] or own["capabilities"].get("add"):
                yield f"{each.told}: keeps capabilities"
            if own.get("readOnlyRootFilesystem") is not True:
                yield f"{each.told}: may write to its root file system"
            if own.get("privileged") or own.get("runAsUser") == 0:
                yield f"{each.told}: a container is privileged"


def _of_pod(each: Workload) -> Iterator[str]:
    context = each.pod.get("securityContext", {})
    if context.get("runAsNonRoot") is not True or not context.get("runAsUser"):
        yield f"{each.told}: may run as root"
    if context.get("seccompProfile") != {"type": "RuntimeDefault"}:
        yield f"{each.told}: has no seccomp profile"
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        if each.pod.get(name):
            yield f"{each.told}: shares the host's ({name})"
    if any("hostPath" in volume for volume in each.pod.get("volumes", [])):
        yield f"{each.told}: mounts a path of the host"


@rule
def user_is_the_image_s(overlay: Overlay) -> Iterator[str]:
    for each in overlay.servers + overlay.migrations:
        context = each.pod.get("securityContext", {})
        if (context.get("runAsUser"), context.get("runAsGroup")) != (10001, 10001):
            yield f"{each.told}: does not run as the image's user"


@rule
def tmp_is_writable_and_bounded(overlay: Overlay) -> Iterator[str]:
    for each in overlay.servers + overlay.migrations:
        mounts = {mount["mountPath"]: mount["name"] for mount in each.containers[0]["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in each.pod["volumes"]}
        tmp = volumes.get(mounts.get("/tmp", ""), {})
        if "sizeLimit" not in tmp.get("emptyDir", {}):
            yield f"{each.told}: /tmp is no emptyDir with a limit"


@rule
def identities_are_their_own(overlay: Overlay) -> Iterator[str]:
    used: dict[str, str] = {}
    for each in overlay.workloads:
        name = each.pod.get("serviceAccountName", "default")
        account = overlay.find("ServiceAccount", name)
        if name == "default" or account is None:
            yield f"{each.told}: its ServiceAccount {name} does not exist"
        elif account.get("automountServiceAccountToken") is not False:
            yield f"{each.told}: its ServiceAccount hands out tokens"
        if each.pod.get("automountServiceAccountToken") is not False:
            yield f"{each.told}: mounts a token"
        if name in used:
            yield f"{each.told}: shares its ServiceAccount with {used[name]}"
        used[name] = each.told


@rule
def replicas_are_spread(overlay: Overlay) -> Iterator[str]:
    """A wish and no condition: a replica in a crowd serves, one that is pending does not."""
    for each in overlay.servers:
        spread = each.pod.get("topologySpreadConstraints", [])
        keys = {one["topologyKey"] for one in spread if selects(one["labelSelector"], each.labels)}
        for key in ("topology.kubernetes.io/zone", "kubernetes.io/hostname"):
            if key not in keys:
                yield f"{each.told}: is not spread over {key}"
        for one in spread:
            if one.get("whenUnsatisfiable") != "ScheduleAnyway":
                yield f"{each.told}: rather waits than runs in a crowded {one['topologyKey']}"
            if one.get("matchLabelKeys") != ["pod-template-hash"]:
                yield f"{each.told}: is spread around the pods that it replaces"
        if _anti_affinity(each).get("requiredDuringSchedulingIgnoredDuringExecution"):
            yield f"{each.told}: rather waits than runs beside another replica"
        if not any(selects(term["labelSelector"], each.labels) for term in _apart(each)):
            yield f"{each.told}: has no anti-affinity to itself"


def _anti_affinity(each: Workload) -> dict[str, Any]:
    found: dict[str, Any] = each.pod.get("affinity", {}).get("podAntiAffinity", {})
    return found


def _apart(each: Workload) -> Iterator[dict[str, Any]]:
    rules = _anti_affinity(each)
    yield from rules.get("requiredDuringSchedulingIgnoredDuringExecution", [])
    for preferred in rules.get("preferredDuringSchedulingIgnoredDuringExecution", []):
        yield preferred["podAffinityTerm"]


@rule
def spreading_is_each_service_s_own(overlay: Overlay) -> Iterator[str]:
    for each in overlay.servers:
        for one in [*each.pod.get("topologySpreadConstraints", []), *_apart(each)]:
            others = [
                other.told
                for other in overlay.workloads
                if other.told != each.told and selects(one["labelSelector"], other.labels)
            ]
            if others:
                yield f"{each.told}: is spread together with {others}"


def time_to_end_s(drain_s: float, grace_s: float) -> float:
    """From SIGTERM to the exit at worst, and some (docs/guides/kubernetes.md has the times)."""
    # The grace twice: for calls, and again for work that outlives them.
    # Order hands its sagas on, payment ends its heartbeat.
    last_s = max(SagaLimits().hand_over_s, STOP_S) + CLOSE_S + FLUSH_S
    return drain_s + grace_s + CLEAN_UP_S + STOP_S + grace_s + last_s + MARGIN_S


@rule
def there_is_time_to_end(overlay: Overlay) -> Iterator[str]:
    for each in overlay.servers:
        hook = each.containers[0].get("lifecycle", {}).get("preStop", {})
        sleep_s = hook.get("sleep", {}).get("seconds", 0)
        if not sleep_s:
            yield f"{each.told}: does not sleep before it is stopped"
        drain_s = float(overlay.setting(each, "drain_delay_s"))
        needed_s = sleep_s + time_to_end_s(drain_s, float(overlay.setting(each, "grace_s")))
        if each.pod.get("terminationGracePeriodSeconds", 30) < needed_s:
            yield f"{each.told}: is killed before the {needed_s:g} s that ending may take"


@rule
def labels_are_complete(overlay: Overlay) -> Iterator[str]:
    for each in overlay.objects:
        labels = each["metadata"].get("labels", {})
        where = f"{each['kind']}/{each['metadata']['name']}"
        for name in ("name", "component", "part-of", "instance", "managed-by"):
            if not labels.get(f"{LABEL}{name}"):
                yield f"{where}: has no label {LABEL}{name}"
        if labels.get(f"{LABEL}instance") != overlay.name:
            yield f"{where}: its instance is not {overlay.name}"
    for workload in overlay.workloads:
        for name in ("name", "component", "part-of"):
            if not workload.labels.get(f"{LABEL}{name}"):
                yield f"{workload.told}: its pods have no label {LABEL}{name}"
        selector = workload.spec.get("selector")
        if selector and not selects(selector, workload.labels):
            yield f"{workload.told}: does not select its own pods"
