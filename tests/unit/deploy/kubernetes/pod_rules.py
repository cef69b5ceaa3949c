"""Rules about pods: ports, resources, privileges, identities, spreading, ending, labels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from common.db.engines import CLOSE_S
from common.rpc.server import CLEAN_UP_S
from common.tasks import STOP_S
from common.tracing import FLUSH_S
from order_service.saga.execution import SagaLimits
from tests.unit.deploy.kubernetes.engine import (
    OBJECTS,
    OVERLAY,
    OWN,
    SERVERS,
    SET,
    UNSET,
    WORKLOADS,
    Check,
    Must,
    Rule,
    at_least,
    bad,
    differs,
    includes,
    of_kind,
    one_of,
    removed,
    rule,
)
from tests.unit.deploy.kubernetes.manifests import (
    GONE,
    LABEL,
    LOCAL,
    METRICS_PORT,
    MULTI,
    PORTS,
    SERVICES,
    Item,
    selects,
)

MARGIN_S: Final = 5
POSTGRES: Final = "StatefulSet/postgres"
SECURITY: Final = "container.securityContext"
ZONE, HOST = "topology.kubernetes.io/zone", "kubernetes.io/hostname"
SPREAD: Final = "pod.topologySpreadConstraints"
REQUIRED: Final = "pod.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution"
PREFERRED: Final = "pod.affinity.podAntiAffinity.preferredDuringSchedulingIgnoredDuringExecution"


@rule(OVERLAY, removed("Deployment/coupon", "server"), removed("Job/coupon-migrate-*", "migration"))
def every_service_has_its_server(whole: Item) -> list[str]:
    """Without this, every other rule would hold for an overlay that runs nothing."""
    found = {"server": whole.overlay.servers, "migration": whole.overlay.migrations}
    return [
        f"there is not one {of} of each service"
        for of, items in found.items()
        if sorted(each.service for each in items) != sorted(SERVICES)
    ]


servers_are_deployments_named_after_their_service = Rule(
    "Services, policies and autoscalers find them by that name.",
    SERVERS,
    Check("kind", "Deployment", bad("DaemonSet", says="DaemonSet/order")),
    Check("metadata.name", lambda each: each.service, bad("orders", says="Deployment/orders")),
)


def declared_ports(each: Item) -> dict[str, int]:
    return each.ports


ports_are_those_bound = Rule(
    "A port that no process binds refuses every call.",
    SERVERS,
    Check(
        declared_ports,
        lambda each: {"grpc": PORTS[each.service], "metrics": METRICS_PORT},
        bad(50051, "container.ports[grpc].containerPort"),
    ),
    Check(
        "setting.bind",
        lambda each: f"0.0.0.0:{PORTS[each.service]}",
        bad("127.0.0.1:50053", "env[TALLY_BIND].value"),
        bad("0.0.0.0:50063", "env[TALLY_ORDER_BIND].value"),
    ),
    Check(
        "setting.metrics_port",
        lambda each: str(each.ports.get("metrics")),
        bad("9000", "env[TALLY_METRICS_PORT].value"),
    ),
)

resources_are_requested = Rule(
    "Pods are placed by their requests; a leak of memory must end one pod and no node.",
    WORKLOADS,
    Check("container.resources.requests.cpu", SET, bad(GONE)),
    Check("container.resources.requests.memory", SET, bad(GONE)),
    Check("container.resources.limits.memory", SET, bad(GONE), bad(GONE, on=POSTGRES)),
)

test_replicas_are_those_of_the_requirement = Rule(
    "R18: four replicas of each service, with half a processor and 512 MB each.",
    SERVERS.only(MULTI),
    Check("spec.replicas", 4, bad(2)),
    Check("container.resources.limits.cpu", "500m", bad("1")),
    Check("container.resources.limits.memory", one_of("512M", "512Mi"), bad("1Gi")),
)

pods_have_no_privileges = Rule(
    "The restricted Pod Security Standard: whoever takes over a process gains nothing else.",
    WORKLOADS,
    Check(f"{SECURITY}.allowPrivilegeEscalation", False, bad(GONE)),
    Check(f"{SECURITY}.capabilities.drop", ["ALL"], bad(GONE)),
    Check(f"{SECURITY}.capabilities.add", UNSET, bad(["NET_RAW"])),
    Check(f"{SECURITY}.readOnlyRootFilesystem", True, bad(False)),
    Check(f"{SECURITY}.privileged", UNSET, bad(True)),
    Check(f"{SECURITY}.runAsUser", differs(0), bad(0)),
    Check("pod.securityContext.runAsNonRoot", True, bad(GONE, on=POSTGRES)),
    Check("pod.securityContext.runAsUser", SET, bad(0)),
    Check(
        "pod.securityContext.seccompProfile",
        {"type": "RuntimeDefault"},
        bad(GONE, on="Job/order-migrate-*"),
    ),
    Check("pod.automountServiceAccountToken", False, bad(True)),
    Check("pod.hostNetwork", UNSET, bad(True)),
    Check("pod.hostPID", UNSET, bad(True)),
    Check("pod.hostIPC", UNSET, bad(True)),
    Check("pod.volumes[*].hostPath", UNSET, bad({"path": "/"}, "pod.volumes[tmp].hostPath")),
)

user_is_the_image_s = Rule(
    "The image's files and volumes belong to this user.",
    OWN,
    Check("pod.securityContext.runAsUser", 10001, bad(1000)),
    Check("pod.securityContext.runAsGroup", 10001, bad(1000)),
)


@rule(OWN, bad({}, "pod.volumes[tmp].emptyDir"), bad(GONE, "container.volumeMounts[/tmp]"))
def tmp_is_writable_and_bounded(each: Item) -> Iterator[str]:
    """The root file system is read-only, and a full disk of a node ends all of its pods."""
    volume = each.get("container.volumeMounts[/tmp].name")
    if not each.get(f"pod.volumes[{volume}].emptyDir.sizeLimit"):
        yield "/tmp is no emptyDir with a limit"


service_accounts_mount_no_token = Rule(
    "No pod calls the API server; a stolen token could.",
    of_kind("ServiceAccount"),
    Check("automountServiceAccountToken", False, bad(GONE)),
)


@rule(
    WORKLOADS,
    removed("ServiceAccount/order", "Deployment/order: its ServiceAccount order does not exist"),
    bad(GONE, "pod.serviceAccountName"),
    bad("balance", "pod.serviceAccountName"),
)
def identities_are_their_own(each: Item) -> Iterator[str]:
    """Logs, policies and clouds distinguish pods by their ServiceAccounts."""
    account = each.get("pod.serviceAccountName", "default")
    if each.overlay.find("ServiceAccount", account) is None:
        yield f"its ServiceAccount {account} does not exist"
    if [one.get("pod.serviceAccountName") for one in each.overlay.workloads].count(account) > 1:
        yield "shares its ServiceAccount"


def spread_over(each: Item) -> list[str]:
    """The topologies over which the replicas are spread among themselves."""
    found = each.get(SPREAD, [])
    return [one["topologyKey"] for one in found if selects(one["labelSelector"], each.labels)]


def prefers_a_host_of_its_own(each: Item) -> bool:
    selectors = each.values(f"{PREFERRED}[*].podAffinityTerm.labelSelector")
    return any(selects(one, each.labels) for one in selectors)


replicas_are_spread = Rule(
    "As a preference: a replica beside another one serves, a replica that is pending does not.",
    SERVERS,
    Check(
        spread_over,
        includes(ZONE, HOST),
        bad(GONE, f"{SPREAD}[{ZONE}]"),
        bad({"matchLabels": {f"{LABEL}name": "orders"}}, f"{SPREAD}[{HOST}].labelSelector"),
    ),
    Check(
        f"{SPREAD}[*].whenUnsatisfiable",
        "ScheduleAnyway",
        bad("DoNotSchedule", f"{SPREAD}[{ZONE}].whenUnsatisfiable"),
        bad("DoNotSchedule", f"{SPREAD}[{HOST}].whenUnsatisfiable"),
    ),
    # Without it, new pods are spread around the old ones that they replace.
    Check(
        f"{SPREAD}[*].matchLabelKeys",
        ["pod-template-hash"],
        bad(GONE, f"{SPREAD}[{ZONE}].matchLabelKeys"),
    ),
    Check(REQUIRED, UNSET, bad([{"topologyKey": HOST}])),
    Check(prefers_a_host_of_its_own, True, bad(GONE, "pod.affinity")),
)


@rule(
    SERVERS,
    bad(
        {"matchLabels": {f"{LABEL}component": "server"}},
        f"{PREFERRED}[0].podAffinityTerm.labelSelector",
    ),
    bad({}, f"{SPREAD}[{ZONE}].labelSelector"),
)
def spreading_is_each_service_s_own(each: Item) -> list[str]:
    """Counted together, the replicas of one service could all be in one zone."""
    terms = each.values(f"{SPREAD}[*]") + each.values(f"{PREFERRED}[*].podAffinityTerm")
    return [
        f"is spread together with {other.title}"
        for other in each.overlay.workloads
        if other.title != each.title
        and any(selects(term["labelSelector"], other.labels) for term in terms)
    ]


def time_to_end_s(drain_s: float, grace_s: float) -> float:
    """From SIGTERM to the exit in the worst case, with a margin (docs/guides/kubernetes.md)."""
    # The grace twice: for calls, and again for work that outlives them.
    # Order hands over its sagas, payment stops its heartbeat.
    last_s = max(SagaLimits().hand_over_s, STOP_S) + CLOSE_S + FLUSH_S
    return drain_s + grace_s + CLEAN_UP_S + STOP_S + grace_s + last_s + MARGIN_S


def as_long_as_ending_takes(each: Item) -> Must:
    sleep_s = each.get("container.lifecycle.preStop.sleep.seconds", 0)
    drain_s, grace_s = float(each.setting("drain_delay_s")), float(each.setting("grace_s"))
    return at_least(sleep_s + time_to_end_s(drain_s, grace_s), default=30)


there_is_time_to_end = Rule(
    "A replica that is killed while it drains fails the calls that it has accepted.",
    SERVERS,
    Check("container.lifecycle.preStop.sleep.seconds", SET, bad(GONE, "container.lifecycle")),
    Check(
        "pod.terminationGracePeriodSeconds",
        as_long_as_ending_takes,
        bad(30),
        bad("120", "env[TALLY_GRACE_S].value", overlay=LOCAL),
        # 5 + 3 + 21 + 5 + 3 + 21 + 3 + 2 + 2 and the margin: too long by the second grace.
        bad("21", "env[TALLY_ORDER_GRACE_S].value", says="60 is not at least 70"),
    ),
)

labels_are_complete = Rule(
    "The recommended labels: kubectl, dashboards and policies select by them.",
    OBJECTS,
    *(
        Check(f"metadata.labels[{LABEL}{name}]", SET, bad(GONE))
        for name in ("name", "component", "part-of", "managed-by")
    ),
    Check(f"metadata.labels[{LABEL}instance]", lambda each: each.overlay.name, bad("x"), bad(GONE)),
)


def selects_itself(each: Item) -> bool:
    return each.kind == "Job" or selects(each.get("spec.selector"), each.labels)


labels_of_pods_are_complete = Rule(
    "The same for pods, which their workload must select.",
    WORKLOADS,
    *(
        Check(f"spec.template.metadata.labels[{LABEL}{name}]", SET, bad(GONE))
        for name in ("name", "component", "part-of")
    ),
    Check(selects_itself, True, bad({"app": "order"}, "spec.selector.matchLabels")),
)
