"""Rules about many replicas: autoscalers, rollouts, disruptions, database connections."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from tests.unit.deploy.kubernetes.engine import (
    OVERLAY,
    SERVERS,
    SET,
    UNSET,
    Check,
    Must,
    Rule,
    added,
    at_least,
    bad,
    between,
    more_than,
    named,
    of_kind,
    removed,
    rule,
)
from tests.unit.deploy.kubernetes.manifests import (
    GONE,
    LABEL,
    LOCAL,
    MULTI,
    PRODUCTION,
    Item,
    selects,
)

REPLICAS_LEAST: Final = 3
DNS_KEEPS_S: Final = 30
"""How long cluster DNS may keep an answer, in kubeadm's Corefile and in NodeLocal DNSCache."""
RESERVED_CONNECTIONS: Final = 3
"""PostgreSQL's superuser_reserved_connections."""
ORDER, SCALER, POSTGRES = (
    "Deployment/order",
    "HorizontalPodAutoscaler/order",
    "StatefulSet/postgres",
)
SCALERS, BUDGETS = of_kind("HorizontalPodAutoscaler"), of_kind("PodDisruptionBudget")
CPU: Final = "container.resources.requests.cpu"
MEASURED: Final = "spec.metrics[0].containerResource"
ALLOWED: Final = "metadata.annotations[tally.dev/postgres-max-connections]"


def target(scaler: Item) -> Item:
    """The workload that an autoscaler scales; an empty object if there is none."""
    kind, name = scaler.get("spec.scaleTargetRef.kind"), scaler.get("spec.scaleTargetRef.name")
    return scaler.overlay.find(kind, name) or Item(scaler.overlay, {})


def scaler_of(each: Item) -> Item | None:
    found = each.overlay.of_kind("HorizontalPodAutoscaler")
    return next((one for one in found if target(one).raw is each.raw), None)


def types_of_metrics(scaler: Item) -> list[str]:
    return scaler.values("spec.metrics[*].type")


def request_of_target(scaler: Item) -> str:
    return str(target(scaler).get(CPU, ""))


autoscalers_scale_by_the_processor = Rule(
    "Of one container, in % of its request: no other load of a replica shows as plainly.",
    SCALERS,
    Check(
        "spec.scaleTargetRef.apiVersion",
        lambda each: target(each).get("apiVersion", "that of its target"),
        bad("apps/v1beta1"),
        bad("orders", "spec.scaleTargetRef.name"),
    ),
    Check(types_of_metrics, ["ContainerResource"], bad(GONE, "spec.metrics")),
    Check(f"{MEASURED}.container", lambda each: target(each).get("container.name"), bad("app")),
    Check(f"{MEASURED}.name", "cpu", bad("memory")),
    Check(f"{MEASURED}.target.type", "Utilization", bad("AverageValue")),
    # Below, most of the request is idle; above, new replicas come too late.
    Check(f"{MEASURED}.target.averageUtilization", between(50, 90), bad(7000), bad(7)),
    Check(request_of_target, SET, bad(GONE, CPU, on=ORDER, says=SCALER)),
)

autoscalers_are_bounded = Rule(
    "Three replicas survive the loss of a zone; without a window, replicas come and go.",
    SCALERS,
    Check("spec.minReplicas", at_least(REPLICAS_LEAST, default=1), bad(2)),
    Check("spec.maxReplicas", lambda each: more_than(each.get("spec.minReplicas", 1)), bad(3)),
    *(
        check
        for path in ("spec.behavior.scaleUp", "spec.behavior.scaleDown")
        for check in (
            Check(f"{path}.policies", SET, bad(GONE), bad(GONE, path)),
            Check(f"{path}.stabilizationWindowSeconds", at_least(0), bad(GONE)),
        )
    ),
)


@rule(
    SERVERS,
    bad(3, "spec.replicas"),
    bad(GONE, "spec.replicas", overlay=LOCAL),
    removed(SCALER, ORDER),
)
def replicas_are_set_in_one_place(each: Item) -> Iterator[str]:
    """In production by an autoscaler, which a number in the manifest would undo at each apply."""
    in_manifest, scaled = each.get("spec.replicas") is not None, scaler_of(each) is not None
    if in_manifest is scaled:
        yield "is set by both, or neither, of the manifest and an autoscaler"
    if each.overlay.name == PRODUCTION and not scaled:
        yield "is not autoscaled"


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
)

rollouts_outlast_a_dns_answer = Rule(
    "A client must not hold an answer of which every replica is gone.",
    SERVERS.only(PRODUCTION),
    Check("spec.minReadySeconds", at_least(DNS_KEEPS_S / REPLICAS_LEAST, default=0), bad(5)),
)


def number_of_workloads(budget: Item) -> int:
    selector = budget.get("spec.selector")
    return sum(selects(selector, each.labels) for each in budget.overlay.workloads)


disruptions_are_bounded = Rule(
    "A drained node takes one replica at a time, and an unhealthy replica does not stop it.",
    BUDGETS,
    Check("spec.maxUnavailable", 1, bad(0)),
    Check("spec.minAvailable", UNSET, bad(1)),
    Check("spec.unhealthyPodEvictionPolicy", "AlwaysAllow", bad(GONE)),
    Check(
        number_of_workloads,
        1,
        bad({"matchLabels": {f"{LABEL}component": "server"}}, "spec.selector"),
    ),
)


def number_of_budgets(each: Item) -> int:
    found = each.overlay.of_kind("PodDisruptionBudget")
    return sum(selects(one.get("spec.selector"), each.labels) for one in found)


servers_have_one_disruption_budget = Rule(
    "With two, the eviction API refuses every eviction.",
    SERVERS,
    Check(number_of_budgets, 1, removed("PodDisruptionBudget/order", ORDER)),
)


def connections_max(each: Item) -> int:
    """What a service opens at most: in a rollout, as many drain as serve, and the surge."""
    # The pool is all of a replica's connections, with that of its readiness probe.
    pool, scaler = int(each.setting("pool_size")), scaler_of(each)
    replicas = scaler.get("spec.maxReplicas") if scaler else each.get("spec.replicas", 1)
    surge = int(each.get("spec.strategy.rollingUpdate.maxSurge", 1))
    migrating = sum(one.service == each.service for one in each.overlay.migrations)
    return (2 * int(replicas) + surge) * pool + migrating


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
    SERVERS.where(lambda each: not each.overlay.has(POSTGRES)),
    Check(
        annotated_connections,
        lambda each: at_least(connections_max(each) + RESERVED_CONNECTIONS),
        bad("12", "env[TALLY_ORDER_POOL_SIZE].value"),
        bad(12, "spec.maxReplicas", SCALER, ORDER),
        bad(GONE, ALLOWED),
    ),
)


@rule(
    OVERLAY.only(PRODUCTION),
    added({"kind": "StatefulSet", "metadata": {"name": "postgres"}}),
    added({"kind": "PersistentVolumeClaim", "metadata": {"name": "data"}}),
)
def production_brings_no_servers(whole: Item) -> list[str]:
    """PostgreSQL, Redis and the gateway are the platform's there."""
    overlay = whole.overlay
    extra = [one for one in overlay.workloads if one not in overlay.servers + overlay.migrations]
    return [each.title for each in (*extra, *overlay.of_kind("PersistentVolumeClaim"))]
