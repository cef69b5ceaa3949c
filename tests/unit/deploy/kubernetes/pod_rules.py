"""Rules about pods: what runs, as whom, with which resources, and how it is probed and ended."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from common.db.database import CLOSE_S
from common.db.transactions import ABORT_S
from common.rpc.server import CLEAN_UP_S
from common.tasks import STOP_S
from common.tracing import FLUSH_S
from deploy.kubernetes.release import number
from deploy.local import gateway
from order_service.saga.running import SagaLimits
from tests.unit.deploy.kubernetes.engine import (
    LASTING,
    OVERLAY,
    OWN,
    SERVERS,
    SET,
    UNSET,
    WORKLOADS,
    Check,
    Must,
    Rule,
    added,
    at_least,
    bad,
    equal,
    matches,
    named,
    removed,
    rule,
)
from tests.unit.deploy.kubernetes.manifests import (
    GONE,
    LABEL,
    LOCAL,
    MULTI,
    PORTS,
    PROBE_PORT,
    PRODUCTION,
    SERVICES,
    Item,
)

MARGIN_S: Final = 5
GATEWAY: Final = "Deployment/gateway"
AUDIT: Final = "Deployment/audit"
MIGRATION, POSTGRES, REDIS = "Job/order-migrate-*", "StatefulSet/postgres", "StatefulSet/redis"
SECURITY: Final = "container.securityContext"
HOW: Final = ("grpc", "tcpSocket", "httpGet")
STARTUP, READINESS, LIVENESS = PROBES = [
    f"container.{each}Probe" for each in ("startup", "readiness", "liveness")
]


RELEASE: Final = number()


def workloads(whole: Item) -> list[str]:
    return sorted(each.title for each in whole.overlay.workloads)


def all_that_run(whole: Item) -> list[str]:
    """In production, PostgreSQL, Redis and the gateway are the platform's."""
    others = [] if whole.overlay.name == PRODUCTION else [GATEWAY, POSTGRES, REDIS]
    # The component `audit` is for an overlay to add.
    others += [AUDIT] if whole.overlay.has(AUDIT) else []
    jobs = [f"Job/{each}-migrate-{RELEASE.replace('.', '-')}" for each in SERVICES]
    return sorted([*(f"Deployment/{each}" for each in SERVICES), *jobs, *others])


every_service_has_a_server_and_a_migration_of_the_release = Rule(
    "Without this, every other rule would hold for an overlay that runs nothing. A Job cannot be"
    " changed, so each release has its own.",
    OVERLAY,
    Check(
        workloads,
        all_that_run,
        removed("Deployment/coupon"),
        bad("DaemonSet", "kind", "Deployment/order"),
        bad("order-migrate", "metadata.name", MIGRATION),
        added({"kind": "StatefulSet", "metadata": {"name": "postgres"}}),
    ),
)


def command(each: Item) -> list[str]:
    migrate = ["migrate"] if each.component == "migration" else []
    return ["python", "-m", f"{each.service}_service", *migrate]


commands_run_the_service = Rule(
    "The image has no default program.",
    OWN,
    Check("container.command", command, bad(GONE, "container.command[3]", MIGRATION)),
    Check("container.args", UNSET, bad(["migrate"])),
)

the_simulator_is_a_module = Rule(
    "A wrong module ends the container at once.",
    named(GATEWAY),
    Check("container.command[2]", gateway.__name__, bad("deploy.gateway")),
)

images_are_pinned = Rule(
    "Else two pods of one release could run different images, and none needs another pull.",
    WORKLOADS,
    Check(
        "container.image",
        matches(r".+(:(?!latest$)[\w.-]+|@sha256:[0-9a-f]{64})"),
        bad("registry.example.com/tally:latest"),
        bad("postgres", on=POSTGRES),
    ),
    Check("container.imagePullPolicy", "IfNotPresent", bad("Always")),
)

servers_and_migrations_run_one_release = Rule(
    "A migration of another release makes another schema than the servers wait for.",
    OWN,
    Check("container.image", matches(rf"(.+/)?tally:{re.escape(RELEASE)}"), bad("tally:0.0.9")),
    Check(f"spec.template.metadata.labels[{LABEL}version]", RELEASE, bad("0.0.9")),
)


def memory(mib: int) -> Must:
    """At least so much, given in Mi or Gi."""

    def holds(quantity: str) -> bool:
        return int(quantity[:-2]) * {"Mi": 1, "Gi": 1024}.get(quantity[-2:], 0) >= mib

    return Must(f"at least {mib} MiB", holds, "0Mi")


resources_are_requested = Rule(
    "Pods are placed by their requests; a leak of memory must end one pod and no node.",
    WORKLOADS,
    Check("container.resources.requests.cpu", SET, bad(GONE)),
    Check("container.resources.requests.memory", SET, bad(GONE)),
    Check("container.resources.limits.memory", SET, bad(GONE), bad(GONE, on=POSTGRES)),
)

memory_is_enough = Rule(
    "A replica without calls takes 115 MiB, and is killed at its limit.",
    OWN,
    Check("container.resources.limits.memory", memory(256), bad("64Mi"), bad("9Mi", on=MIGRATION)),
    Check("container.resources.requests.memory", memory(128), bad("64Mi")),
)

test_replicas_are_those_of_the_requirement = Rule(
    "R18: four replicas of each service, with half a processor and 512 MB each.",
    SERVERS.only(MULTI),
    Check("spec.replicas", 4, bad(2)),
    Check("container.resources.limits.cpu", "500m", bad("1")),
    Check("container.resources.limits.memory", "512Mi", bad("1Gi")),
)

pods_have_no_privileges = Rule(
    "The restricted Pod Security Standard: whoever takes over a process gains nothing else.",
    WORKLOADS,
    Check(f"{SECURITY}.allowPrivilegeEscalation", False, bad(GONE)),
    Check(
        f"{SECURITY}.capabilities",
        {"drop": ["ALL"]},
        bad(["NET_RAW"], f"{SECURITY}.capabilities.add"),
    ),
    Check(f"{SECURITY}.readOnlyRootFilesystem", True, bad(False)),
    Check(f"{SECURITY}.privileged", UNSET, bad(True)),
    Check(f"{SECURITY}.runAsUser", equal(None), bad(0)),
    Check("pod.securityContext.runAsNonRoot", True, bad(GONE, on=POSTGRES)),
    Check("pod.securityContext.runAsUser", at_least(1), bad(0)),
    Check(
        "pod.securityContext.seccompProfile", {"type": "RuntimeDefault"}, bad(GONE, on=MIGRATION)
    ),
    Check("pod.automountServiceAccountToken", False, bad(True)),
    Check("pod.hostNetwork", UNSET, bad(True)),
    Check("pod.hostPID", UNSET, bad(True)),
    Check("pod.hostIPC", UNSET, bad(True)),
    Check("pod.volumes[*].hostPath", UNSET, bad({"path": "/"}, "pod.volumes[tmp].hostPath")),
)


def identity(each: Item) -> str:
    return f"{each.service}-migration" if each.component == "migration" else each.service


identities_are_their_own = Rule(
    "Logs, policies and clouds distinguish pods by their ServiceAccounts.",
    WORKLOADS,
    Check("pod.serviceAccountName", identity, bad(GONE), bad("balance")),
)

user_is_the_image_s = Rule(
    "The image's files and volumes belong to this user.",
    OWN,
    Check("pod.securityContext.runAsUser", 10001, bad(1000)),
    Check("pod.securityContext.runAsGroup", 10001, bad(1000)),
)

nothing_is_held_back = Rule(
    "The cluster accepts each of these, and then nothing happens.",
    WORKLOADS,
    Check("spec.suspend", UNSET, bad(True, on=MIGRATION)),
    Check("spec.paused", UNSET, bad(True)),
    Check("spec.replicas", at_least(1, default=1), bad(0, on=GATEWAY)),
    Check("spec.parallelism", at_least(1, default=1), bad(0, on=MIGRATION)),
)

# ---- probes


def port_of_probes(each: Item) -> int:
    """They do no TLS."""
    return PROBE_PORT if each.overlay.has_tls else PORTS[each.service]


probes_of_servers_are_grpc = Rule(
    "The health service knows more than an open port does. Readiness is the state of the server"
    " (''); liveness that of the event loop alone, for a restart does not mend a database.",
    SERVERS,
    Check(f"{STARTUP}.grpc.service", "liveness", bad("")),
    Check(f"{LIVENESS}.grpc.service", "liveness", bad("")),
    Check(f"{READINESS}.grpc.service", equal("", default=""), bad("liveness")),
    *(Check(f"{one}.grpc.port", port_of_probes, bad(1), bad(50053)) for one in PROBES),
)


ACTS_AFTER_S: Final = {
    STARTUP: (30, 600),
    # Sooner, and one slow answer takes a replica out of DNS; later, and clients call it too long.
    READINESS: (5, 15),
    # Sooner, and a busy node kills what works; later, and what hangs keeps its place too long.
    LIVENESS: (45, 90),
}


@rule(
    LASTING,
    *(bad(GONE, probe, REDIS) for probe in PROBES),
    *(bad(GONE, f"{probe}.timeoutSeconds") for probe in PROBES),
    bad("grpc", f"{LIVENESS}.grpc.port"),
    bad(1, f"{READINESS}.tcpSocket.port", REDIS),
    bad(3, f"{STARTUP}.failureThreshold"),
    bad(6, f"{READINESS}.failureThreshold"),
    bad(1, f"{READINESS}.failureThreshold", POSTGRES, "acts at one failure"),
    bad(2, f"{LIVENESS}.failureThreshold"),
    bad(100, f"{LIVENESS}.periodSeconds"),
    bad(60, f"{LIVENESS}.initialDelaySeconds"),
    bad(15, f"{READINESS}.timeoutSeconds", None, "waits into its next period"),
)
def everything_that_lasts_is_probed_in_time(each: Item) -> Iterator[str]:
    """Readiness acts within seconds and liveness after about a minute, neither at one failure."""
    for probe, (least_s, most_s) in ACTS_AFTER_S.items():
        timeout_s = each.get(f"{probe}.timeoutSeconds", 1)
        period_s = each.get(f"{probe}.periodSeconds", 10)
        failures = each.get(f"{probe}.failureThreshold", 3)
        # A throttled process takes longer to answer, and a probe that is absent has the default.
        if timeout_s < 2:
            yield f"{probe} allows for no busy node"
        if timeout_s > period_s and probe != STARTUP:
            yield f"{probe} waits into its next period"
        if failures < 2:
            yield f"{probe} acts at one failure"
        if not least_s <= period_s * failures <= most_s:
            yield f"{probe} acts after {period_s * failures} s, not {least_s} to {most_s} s"
        if each.get(f"{probe}.initialDelaySeconds"):
            yield f"{probe} has a delay beside the startup probe"
        for port in filter(None, (each.get(f"{probe}.{how}.port") for how in HOW)):
            # A gRPC probe takes no name of a port, and a closed port always fails.
            if port not in each.ports.values():
                yield f"{probe} calls port {port}, which is not declared"


# ---- ending


def time_to_end_s(drain_s: float, grace_s: float) -> float:
    """From SIGTERM to the exit in the worst case, with a margin (docs/guides/kubernetes.md)."""
    # The grace twice: for calls, and again for work that outlives them.
    # Order hands over its sagas, payment stops its heartbeat. COMMITs may not have returned.
    last_s = max(SagaLimits().hand_over_s, STOP_S) + ABORT_S + CLOSE_S + FLUSH_S
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
        # 5 + 3 + 21 + 5 + 3 + 21 + 3 + 1 + 2 + 2 and the margin: too long by the second grace.
        bad("21", "env[TALLY_ORDER_GRACE_S].value", says="60 is not at least 71"),
    ),
)
