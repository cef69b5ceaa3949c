"""Rules about many replicas: spreading, autoscalers, rollouts, migrations, connections."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Final

from tests.unit.deploy.kubernetes.engine import (
    LASTING,
    MIGRATIONS,
    OVERLAY,
    SERVERS,
    SET,
    UNSET,
    Check,
    Must,
    Rule,
    at_least,
    bad,
    between,
    more_than,
    named,
    of_kind,
    one_of,
    removed,
    rule,
)
from tests.unit.deploy.kubernetes.manifests import (
    GONE,
    LABEL,
    LOCAL,
    MULTI,
    PRODUCTION,
    SERVICES,
    Item,
)

REPLICAS_LEAST: Final = 3
DNS_KEEPS_S: Final = 30
"""How long cluster DNS may keep an answer, in kubeadm's Corefile and in NodeLocal DNSCache."""
RESERVED_CONNECTIONS: Final = 3
"""PostgreSQL's superuser_reserved_connections."""
BACKOFF_FIRST_S: Final = 10
BACKOFF_MAX_S: Final = 360
"""Kubernetes' own: a Job waits twice as long after each failure, from the first to the longest."""
UNTRIED_MAX_S: Final = 90
"""How long a database may be reachable before an attempt notices it."""
ORDER, POSTGRES = "Deployment/order", "StatefulSet/postgres"
SCALER, BUDGET = "HorizontalPodAutoscaler/order", "PodDisruptionBudget/order"
SCALERS, BUDGETS = of_kind("HorizontalPodAutoscaler"), of_kind("PodDisruptionBudget")
MEASURED: Final = "spec.metrics[0].containerResource"
ALLOWED: Final = "metadata.annotations[tally.dev/postgres-max-connections]"
ZONE, HOST = "topology.kubernetes.io/zone", "kubernetes.io/hostname"
SPREAD: Final = "pod.topologySpreadConstraints"
REQUIRED: Final = "pod.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution"
PREFERRED: Final = "pod.affinity.podAntiAffinity.preferredDuringSchedulingIgnoredDuringExecution[0]"
TOGETHER: Final = {"matchLabels": {f"{LABEL}component": "server"}}
"""A selector of all services."""


def own_pods(each: Item) -> dict[str, Any]:
    """The selector of a workload's pods."""
    labels = {name: each.labels.get(name) for name in (f"{LABEL}name", f"{LABEL}component")}
    return {"matchLabels": labels}


workloads_select_their_own_pods = Rule(
    "Those of two workloads would replace each other's pods.",
    LASTING,
    Check("spec.selector", own_pods, bad(TOGETHER)),
)


def spread_over(each: Item) -> list[str]:
    return each.values(f"{SPREAD}[*].topologyKey")


replicas_are_spread = Rule(
    "Those of one service among themselves: counted together, all could be in one zone. As a"
    " preference: a replica beside another one serves, a replica that is pending does not.",
    SERVERS,
    Check(spread_over, [ZONE, HOST], bad(GONE, f"{SPREAD}[{ZONE}]")),
    Check(f"{SPREAD}[*].labelSelector", own_pods, bad(TOGETHER, f"{SPREAD}[0].labelSelector")),
    Check(
        f"{SPREAD}[*].whenUnsatisfiable",
        "ScheduleAnyway",
        bad("DoNotSchedule", f"{SPREAD}[{HOST}].whenUnsatisfiable"),
    ),
    # Without it, new pods are spread around the old ones that they replace.
    Check(
        f"{SPREAD}[*].matchLabelKeys",
        ["pod-template-hash"],
        bad(GONE, f"{SPREAD}[{ZONE}].matchLabelKeys"),
    ),
    Check(REQUIRED, UNSET, bad([{"topologyKey": HOST}])),
    Check(f"{PREFERRED}.podAffinityTerm.topologyKey", HOST, bad(GONE, "pod.affinity")),
    Check(f"{PREFERRED}.podAffinityTerm.labelSelector", own_pods, bad(TOGETHER)),
)

# ---- autoscalers

autoscalers_scale_by_the_processor = Rule(
    "Of one container, in % of its request: no other load of a replica shows as plainly.",
    SCALERS,
    Check(
        "spec.scaleTargetRef",
        lambda each: {"apiVersion": "apps/v1", "kind": "Deployment", "name": each.name},
        bad("orders", "spec.scaleTargetRef.name"),
    ),
    Check("spec.metrics[1]", UNSET, bad([{}, {"type": "Resource"}], "spec.metrics")),
    Check("spec.metrics[0].type", "ContainerResource", bad(GONE, "spec.metrics")),
    Check(f"{MEASURED}.container", "server", bad("app")),
    Check(f"{MEASURED}.name", "cpu", bad("memory")),
    Check(f"{MEASURED}.target.type", "Utilization", bad("AverageValue")),
    # Below, most of the request is idle; above, new replicas come too late.
    Check(f"{MEASURED}.target.averageUtilization", between(50, 90), bad(7000), bad(7)),
)

autoscalers_are_bounded = Rule(
    "Three replicas survive the loss of a zone; without a window, replicas come and go.",
    SCALERS,
    Check("spec.minReplicas", at_least(REPLICAS_LEAST, default=1), bad(2)),
    Check("spec.maxReplicas", lambda each: more_than(each.get("spec.minReplicas", 1)), bad(3)),
    Check("spec.behavior.scaleUp.policies", SET, bad(GONE)),
    Check("spec.behavior.scaleDown.policies", SET, bad(GONE)),
    Check("spec.behavior.scaleUp.stabilizationWindowSeconds", at_least(0), bad(GONE)),
    Check("spec.behavior.scaleDown.stabilizationWindowSeconds", at_least(0), bad(GONE)),
)


def scaler_of(each: Item) -> Item | None:
    return each.overlay.find("HorizontalPodAutoscaler", each.name)


def replicas_max(each: Item) -> int:
    scaler = scaler_of(each)
    return int(scaler.get("spec.maxReplicas") if scaler else each.get("spec.replicas", 1))


@rule(SERVERS, bad(12, "spec.maxReplicas", SCALER, ORDER))
def limits_are_divided_by_the_replicas(each: Item) -> Iterator[str]:
    """With more replicas than the setting, a user has more than the limit."""
    setting = int(each.setting("rate_limit_replicas"))
    if each.setting("auth") == "required" and setting != replicas_max(each):
        yield f"{setting} in TALLY_RATE_LIMIT_REPLICAS"


@rule(
    SERVERS,
    bad(3, "spec.replicas"),
    bad(GONE, "spec.replicas", overlay=LOCAL),
    removed(SCALER, ORDER),
)
def replicas_are_set_in_one_place(each: Item) -> Iterator[str]:
    """In production by an autoscaler, which a number in the manifest would undo at each apply."""
    scaled, in_manifest = scaler_of(each) is not None, each.get("spec.replicas") is not None
    production = each.overlay.name == PRODUCTION
    if (scaled, in_manifest) != (production, not production):
        yield f"{scaled=}, {in_manifest=}"


# ---- rollouts and disruptions


def longer_than_migrations(each: Item) -> Must:
    deadlines = [one.get("spec.activeDeadlineSeconds", 0) for one in each.overlay.migrations]
    return more_than(max(deadlines), default=600)


rollouts_lose_no_replica = Rule(
    "One more at a time, and each for longer than its clients need to look for the new one.",
    SERVERS,
    Check("spec.strategy.rollingUpdate.maxUnavailable", 0, bad(1)),
    Check("spec.strategy.rollingUpdate.maxSurge", 1, bad(GONE)),
    Check(
        "spec.minReadySeconds",
        lambda each: more_than(float(each.setting("drain_delay_s")), default=0),
        bad(3),
    ),
    # New replicas wait for their schema; their rollout must not be given up meanwhile.
    Check("spec.progressDeadlineSeconds", longer_than_migrations, bad(GONE)),
)

rollouts_outlast_a_dns_answer = Rule(
    "A client must not hold an answer of which every replica is gone.",
    SERVERS.only(PRODUCTION),
    Check("spec.minReadySeconds", at_least(DNS_KEEPS_S / REPLICAS_LEAST, default=0), bad(5)),
)


def budgets(whole: Item) -> list[str]:
    return [each.name for each in BUDGETS.select(whole.overlay)]


every_service_has_one_disruption_budget = Rule(
    "With two, the eviction API refuses every eviction.",
    OVERLAY,
    Check(budgets, [*SERVICES], removed(BUDGET, "budgets")),
)

disruptions_are_bounded = Rule(
    "A drained node takes one replica at a time, and an unhealthy replica does not stop it.",
    BUDGETS,
    Check("spec.maxUnavailable", 1, bad(0)),
    Check("spec.minAvailable", UNSET, bad(1)),
    Check("spec.unhealthyPodEvictionPolicy", "AlwaysAllow", bad(GONE)),
    Check(
        "spec.selector",
        lambda each: own_pods(each.overlay.the(f"Deployment/{each.name}")),
        bad(TOGETHER),
    ),
)

# ---- migrations


def attempts(retries: int, each_s: float) -> list[float]:
    """When the attempts of a Job begin that take so long and fail, in seconds from its start."""
    begun = [0.0]
    for failures in range(retries):
        begun.append(begun[-1] + each_s + min(BACKOFF_FIRST_S * 2**failures, BACKOFF_MAX_S))
    return begun


def longest_pause_s(each: Item) -> float:
    """The longest time in which no attempt waits for the database."""
    limit_s, retries = each.get("spec.activeDeadlineSeconds", 0), each.get("spec.backoffLimit", 6)
    wait_s = float(each.setting("migrate_wait_s"))
    begun = [one for one in attempts(retries, wait_s) if one < limit_s]
    pairs = pairwise([*begun, float(limit_s)])
    return max((after - (before + wait_s) for before, after in pairs), default=0)


def after_the_last_attempt(each: Item) -> Must:
    """The deadline is after the last attempt begins, if each fails at once."""
    return more_than(attempts(each.get("spec.backoffLimit", 6), 0)[-1])


migrations_are_tried_until_their_time_is_over = Rule(
    "On a new cluster the database may come minutes after the Job, which is removed in the end.",
    MIGRATIONS,
    Check("spec.ttlSecondsAfterFinished", at_least(1), bad(GONE)),
    Check("spec.backoffLimit", at_least(0), bad(GONE)),
    Check("pod.restartPolicy", one_of("Never", "OnFailure"), bad("Always")),
    Check("spec.activeDeadlineSeconds", after_the_last_attempt, bad(600), bad(GONE)),
    Check(
        longest_pause_s,
        between(0, UNTRIED_MAX_S),
        bad(1, "spec.backoffLimit", says="470.0 is not"),
        bad(GONE, "container.env", says="320.0 is not"),
    ),
)

servers_do_not_migrate = Rule(
    "Each replica would do so before it serves, under a role that may change the schema.",
    SERVERS,
    Check("pod.initContainers", UNSET, bad([{"name": "migrate"}])),
)

# ---- connections


def connections_max(each: Item) -> int:
    """What a service opens at most: in a rollout, as many drain as serve, and the surge."""
    # The pool is all of a replica's connections, with that of its readiness probe.
    pool, replicas = int(each.setting("pool_size")), replicas_max(each)
    surge = int(each.get("spec.strategy.rollingUpdate.maxSurge", 1))
    return (2 * replicas + surge) * pool + 1  # and its migration


def what_all_services_open(postgres: Item) -> Must:
    opened = sum(map(connections_max, postgres.overlay.servers))
    return at_least(opened + RESERVED_CONNECTIONS)


def max_connections(postgres: Item) -> int:
    found = re.search(r"max_connections=(\d+)", " ".join(postgres.get("container.args", [])))
    return int(found[1]) if found else 0


def annotated_connections(each: Item) -> int:
    return int(each.get(ALLOWED, 0))


pools_fit_the_database = Rule(
    "PostgreSQL refuses connections beyond max_connections.",
    named(POSTGRES),
    Check(
        max_connections,
        what_all_services_open,
        bad(16, "spec.replicas", ORDER, POSTGRES, MULTI),
        bad("200", "env[TALLY_POOL_SIZE].value", ORDER, POSTGRES, LOCAL),
        bad([], "container.args"),
    ),
)

pools_fit_the_database_of_the_platform = Rule(
    "Each service has a PostgreSQL server elsewhere, whose operator reads this number.",
    SERVERS.only(PRODUCTION),
    Check(
        annotated_connections,
        lambda each: at_least(connections_max(each) + RESERVED_CONNECTIONS),
        bad("12", "env[TALLY_ORDER_POOL_SIZE].value"),
        bad(12, "spec.maxReplicas", SCALER, ORDER),
        bad(GONE, ALLOWED),
    ),
)
