"""Rules about many replicas: rollouts, disruption, database connections."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from tests.unit.deploy.kubernetes.autoscaling_rules import SCALED_LEAST
from tests.unit.deploy.kubernetes.manifests import Overlay, Workload, selects, told
from tests.unit.deploy.kubernetes.rule import rule

DNS_KEEPS_S: Final = 30
"""How long cluster DNS may keep an answer: kubeadm's Corefile says so, and NodeLocal DNSCache."""
RESERVED_CONNECTIONS: Final = 3
"""PostgreSQL's superuser_reserved_connections."""
ALLOWED: Final = "tally.dev/postgres-max-connections"


@rule
def rollouts_lose_no_replica(overlay: Overlay) -> Iterator[str]:
    for each in overlay.servers:
        rolling = each.spec.get("strategy", {}).get("rollingUpdate", {})
        if rolling.get("maxUnavailable") != 0 or rolling.get("maxSurge") != 1:
            yield f"{each.told}: is not rolled out one more at a time"
        least_s = each.spec.get("minReadySeconds", 0)
        if least_s <= float(overlay.setting(each, "drain_delay_s")):
            yield f"{each.told}: goes on before clients have looked for the new replica"
        if overlay.name == "production" and least_s * SCALED_LEAST < DNS_KEEPS_S:
            yield f"{each.told}: is replaced while DNS still tells of none but old replicas"


@rule
def disruptions_are_bounded(overlay: Overlay) -> Iterator[str]:
    budgets = overlay.of_kind("PodDisruptionBudget")
    for budget in budgets:
        spec = budget["spec"]
        if spec.get("maxUnavailable") != 1 or "minAvailable" in spec:
            yield f"{told(budget)}: does not let one pod go at a time"
        if spec.get("unhealthyPodEvictionPolicy") != "AlwaysAllow":
            yield f"{told(budget)}: keeps pods that are unhealthy"
    for each in overlay.servers:
        matching = [one for one in budgets if selects(one["spec"].get("selector"), each.labels)]
        if len(matching) != 1:
            yield f"{each.told}: has {len(matching)} PodDisruptionBudgets, not one"
    for budget in budgets:
        selected = [
            each for each in overlay.workloads if selects(budget["spec"]["selector"], each.labels)
        ]
        if len(selected) != 1:
            yield f"{told(budget)}: is about {len(selected)} workloads, not one"


def connections_max(overlay: Overlay, each: Workload) -> int:
    """What a service opens at most: in a rollout, as many drain as serve, and some surge."""
    # All of a replica's, with the one of its readiness probe.
    pool = int(overlay.setting(each, "pool_size"))
    surge = int(each.spec["strategy"]["rollingUpdate"]["maxSurge"])
    migrating = sum(other.service == each.service for other in overlay.migrations)
    return (2 * overlay.replicas_max(each) + surge) * pool + migrating


@rule
def pools_fit_the_database(overlay: Overlay) -> Iterator[str]:
    opened = {each.service: connections_max(overlay, each) for each in overlay.servers}
    server = overlay.find("StatefulSet", "postgres")
    if server is not None:
        arguments = Workload(server).containers[0].get("args", [])
        allowed = [int(one.split("=")[1]) for one in arguments if "max_connections=" in one]
        if not allowed or sum(opened.values()) + RESERVED_CONNECTIONS > allowed[0]:
            yield f"{told(server)}: allows {allowed} connections, and may get {opened}"
        return
    for each in overlay.servers:
        # Each service has a server of its own there, whose operator reads this number.
        allows = int(each.raw["metadata"].get("annotations", {}).get(ALLOWED, "0"))
        if opened[each.service] + RESERVED_CONNECTIONS > allows:
            yield f"{each.told}: asks for {allows} connections, and may open {opened[each.service]}"


@rule
def production_brings_no_servers(overlay: Overlay) -> Iterator[str]:
    if overlay.name != "production":
        return
    for each in overlay.of_kind("StatefulSet", "PersistentVolumeClaim"):
        yield f"{told(each)}: keeps data in production"
    for workload in overlay.workloads:
        if workload not in overlay.servers + overlay.migrations:
            yield f"{workload.told}: is not part of production"
