"""Who reaches whom: the network policies decided as a cluster decides them."""

from __future__ import annotations

import ipaddress
from dataclasses import fields
from typing import Any, Final, NamedTuple

from order_service.clients import Services
from tests.unit.deploy.kubernetes.manifests import (
    LABEL,
    METRICS_PORT,
    NAMESPACE,
    PORTS,
    PRODUCTION,
    SERVICES,
    SETTINGS_OF,
    Labels,
    Object,
    Overlay,
    selects,
)

Edge = tuple[str, str, int]
"""The caller, the callee and its port."""
POSTGRES_PORT, REDIS_PORT, GATEWAY_PORT, DNS_PORT = 5432, 6379, 50055, 53
SERVED: Final = (*PORTS.values(), METRICS_PORT, GATEWAY_PORT, POSTGRES_PORT, REDIS_PORT)
LISTENING: Final = {*SERVED, 443, 80, 22}
CLIENT: Final = {"tally.dev/client": "true"}


def namespace(name: str) -> Labels:
    return {"kubernetes.io/metadata.name": name}


TALLY, SYSTEM = namespace(NAMESPACE), namespace("kube-system")
ELSEWHERE, MONITORING = namespace("elsewhere"), namespace("monitoring")
OUTSIDE: Final = {"postgres": "10.20.30.40", "redis": "172.20.30.40", "gateway": "203.0.113.7"}
"""In production: a private address for the servers, a public one for the gateway."""


class Other(NamedTuple):
    """The far end: a pod, by its labels and its namespace's, or an address outside the cluster."""

    labels: Labels | None = None
    address: str | None = None
    namespace: Labels = TALLY


UNKNOWN: Final = Other(address="198.51.100.5")
RESOLVER: Final = Other({"k8s-app": "kube-dns"}, namespace=SYSTEM)


def allowed(
    overlay: Overlay,
    direction: str,
    own: Labels,
    other: Other,
    *,
    port: int,
    protocol: str = "TCP",
) -> bool:
    """Whether the policies let a pod through in one direction, ``ingress`` or ``egress``."""
    peers = "from" if direction == "ingress" else "to"
    policies = [each["spec"] for each in overlay.objects if each["kind"] == "NetworkPolicy"]
    specs = [
        spec
        for spec in policies
        if direction.capitalize() in spec["policyTypes"] and selects(spec["podSelector"], own)
    ]
    if not specs:
        return True
    for entry in (entry for spec in specs for entry in spec.get(direction) or []):
        ports, sources = entry.get("ports"), entry.get(peers)
        if ports and not any(port_matches(one, port, protocol) for one in ports):
            continue
        if not sources or any(_peer_matches(one, other) for one in sources):
            return True
    return False


def port_matches(entry: Object, port: int, protocol: str = "TCP") -> bool:
    if entry.get("protocol", "TCP") != protocol:
        return False
    first: Any = entry.get("port")
    return first is None or bool(first <= port <= entry.get("endPort", first))


def _peer_matches(peer: Object, other: Other) -> bool:
    if "ipBlock" in peer:
        if other.address is None:
            return False
        block, ip = peer["ipBlock"], ipaddress.ip_address(other.address)
        inside = ip in ipaddress.ip_network(block["cidr"])
        return inside and not any(
            ip in ipaddress.ip_network(one) for one in block.get("except", [])
        )
    if other.labels is None:
        return False
    if "namespaceSelector" in peer:
        inside = selects(peer["namespaceSelector"], other.namespace)
    else:
        inside = other.namespace == TALLY
    return inside and selects(peer.get("podSelector", {}), other.labels)


def pods(overlay: Overlay) -> dict[str, Labels]:
    """The labels of the overlay's pods, by service."""
    return {
        f"{each.service} migration" if each in overlay.migrations else each.service: each.labels
        for each in overlay.workloads
    }


def parties(overlay: Overlay) -> dict[str, Labels]:
    """The same with a pod of somebody else in the namespace, and one with the clients' label."""
    return {**pods(overlay), "stranger": {f"{LABEL}name": "stranger"}, "client": CLIENT}


def outsiders(overlay: Overlay) -> dict[str, Other]:
    """Pods of other namespaces, and addresses. Labels let no pod elsewhere in: anyone sets them."""
    found = {
        f"{name} elsewhere": Other(labels, None, ELSEWHERE)
        for name, labels in parties(overlay).items()
    }
    return found | {
        "a namespace of clients": Other({}, None, ELSEWHERE | CLIENT),
        "monitoring": Other({}, None, MONITORING),
        "kube-system": Other({}, None, SYSTEM),
        "an address of a node's network": Other(address="10.1.2.3"),
        "an unknown address": UNKNOWN,
    }


def calls_of_the_code(overlay: Overlay) -> set[Edge]:
    """The edges that the code needs, from its clients and its settings."""
    edges = {("order", peer.name, PORTS[peer.name]) for peer in fields(Services)}
    gateway_port = 443 if overlay.name == PRODUCTION else GATEWAY_PORT
    for service, settings in SETTINGS_OF.items():
        if "database_url" in settings.model_fields:
            edges |= {(service, "postgres", POSTGRES_PORT)}
        if "owner_database_url" in settings.model_fields:
            edges |= {(f"{service} migration", "postgres", POSTGRES_PORT)}
        if "redis_url" in settings.model_fields:
            edges |= {(service, "redis", REDIS_PORT)}
        if "gateway_url" in settings.model_fields:
            edges |= {(service, "gateway", gateway_port)}
    edges |= {("client", service, PORTS[service]) for service in SERVICES}
    return _as_addresses_show(overlay, edges)


def calls_allowed(overlay: Overlay) -> set[Edge]:
    """The edges that the policies of both ends allow, on every port that anything listens on."""
    everyone = parties(overlay)
    edges = set()
    for caller, labels in everyone.items():
        for port in LISTENING:
            for callee, of_callee in everyone.items():
                if caller != callee and (
                    allowed(overlay, "egress", labels, Other(of_callee), port=port)
                    and allowed(overlay, "ingress", of_callee, Other(labels), port=port)
                ):
                    edges.add((caller, callee, port))
            for callee, address in OUTSIDE.items():
                if callee not in everyone and allowed(
                    overlay, "egress", labels, Other(address=address), port=port
                ):
                    edges.add((caller, callee, port))
    return _as_addresses_show(overlay, edges)


def _as_addresses_show(overlay: Overlay, edges: set[Edge]) -> set[Edge]:
    """In production a private address may be that of either server; only the port shows which."""
    if overlay.name != PRODUCTION:
        return edges
    return {
        (caller, "private" if callee in ("postgres", "redis") else callee, port)
        for caller, callee, port in edges
    }
