"""Rules about who reaches whom: Services, and policies whose edges are the calls the code makes."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import fields
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from common.addresses import split_host_port
from order_service.clients import Services
from tests.unit.deploy.kubernetes.manifests import (
    LABEL,
    METRICS_PORT,
    NAMESPACE,
    PORTS,
    SERVICES,
    SETTINGS_OF,
    Object,
    Overlay,
    selects,
    told,
)
from tests.unit.deploy.kubernetes.rule import rule

Labels = dict[str, str]
Edge = tuple[str, str, int]
"""Who, whom, and on which port."""
POSTGRES_PORT, REDIS_PORT, GATEWAY_PORT, DNS_PORT = 5432, 6379, 50055, 53
LISTENING: Final = {
    *PORTS.values(),
    METRICS_PORT,
    GATEWAY_PORT,
    POSTGRES_PORT,
    REDIS_PORT,
    443,
    80,
    22,
}
CLIENT: Final = {"tally.dev/client": "true"}
OURS: Final = {"kubernetes.io/metadata.name": NAMESPACE}
SYSTEM: Final = {"kubernetes.io/metadata.name": "kube-system"}
OUTSIDE: Final = {"postgres": "10.20.30.40", "redis": "172.20.30.40", "gateway": "203.0.113.7"}
"""In production: a private address for the servers, a public one for the gateway."""
FAR: Final = "198.51.100.5"
"""Of nobody that is known."""


class Other(NamedTuple):
    """The far end: a pod, by its labels and its namespace's, or an address outside the cluster."""

    labels: Labels | None = None
    address: str | None = None
    namespace: Labels = OURS


RESOLVER: Final = Other({"k8s-app": "kube-dns"}, namespace=SYSTEM)


# ---- Services


@rule
def services_select_something(overlay: Overlay) -> Iterator[str]:
    for each in overlay.of_kind("Service"):
        matching = [
            workload
            for workload in overlay.workloads
            if selects({"matchLabels": each["spec"]["selector"]}, workload.labels)
        ]
        if len(matching) != 1:
            yield f"{told(each)}: selects {len(matching)} workloads, not one"
        for workload in matching:
            for port in each["spec"]["ports"]:
                if port.get("targetPort") not in workload.ports:
                    yield f"{told(each)}: {workload.told} has no port {port.get('targetPort')!r}"
                elif workload.ports[port["targetPort"]] != port["port"]:
                    yield f"{told(each)}: its port is not that of {workload.told}"


@rule
def servers_have_both_services(overlay: Overlay) -> Iterator[str]:
    for service in SERVICES:
        for name, headless in ((service, False), (f"{service}-headless", True)):
            found = overlay.find("Service", name)
            if found is None:
                yield f"Service/{name}: does not exist"
                continue
            yield from _of_service(found, service, headless=headless)
    for each in overlay.of_kind("StatefulSet"):
        if overlay.find("Service", each["spec"]["serviceName"]) is None:
            yield f"{told(each)}: its Service does not exist"


def _of_service(found: Object, service: str, *, headless: bool) -> Iterator[str]:
    spec, port = found["spec"], found["spec"]["ports"][0]
    if (spec.get("clusterIP") == "None") is not headless:
        yield f"{told(found)}: is {'not ' if headless else ''}headless"
    if spec.get("publishNotReadyAddresses"):
        yield f"{told(found)}: publishes replicas that are not ready"
    if (port["name"], port.get("appProtocol")) != ("grpc", "kubernetes.io/h2c"):
        yield f"{told(found)}: does not say that it speaks gRPC"
    if port["port"] != PORTS[service]:
        yield f"{told(found)}: is not on port {PORTS[service]}"
    if spec["selector"].get(f"{LABEL}component") != "server":
        yield f"{told(found)}: may send calls to pods that serve none"


@rule
def addresses_are_services(overlay: Overlay) -> Iterator[str]:
    for each in overlay.servers:
        for name, value in overlay.environment(each.containers[0]).items():
            if name.endswith("_ADDRESS"):
                host, port = split_host_port(value.removeprefix("dns:///"))
                service = name.removeprefix("TALLY_ORDER_").removesuffix("_ADDRESS").lower()
                if value != f"dns:///{service}-headless:{PORTS[service]}":
                    yield f"{each.told}: {name} is not every ready replica of {service}"
            elif name.endswith("GATEWAY_URL") and overlay.name != "production":
                host, port = urlsplit(value).hostname or "", urlsplit(value).port or 80
            else:
                continue
            found = overlay.find("Service", host)
            if found is None or port not in [one["port"] for one in found["spec"]["ports"]]:
                yield f"{each.told}: {name} names no Service and port of the overlay"


# ---- Network policies


def calls(overlay: Overlay) -> set[Edge]:
    """The edges that the code needs."""
    edges = {("order", peer.name, PORTS[peer.name]) for peer in fields(Services)}
    gateway_port = 443 if overlay.name == "production" else GATEWAY_PORT
    for service, settings in SETTINGS_OF.items():
        if "database_url" in settings.model_fields:
            edges |= {(service, "postgres", POSTGRES_PORT)}
        if "owner_database_url" in settings.model_fields:
            edges |= {(f"{service} migration", "postgres", POSTGRES_PORT)}
        if "redis_url" in settings.model_fields:
            edges |= {(service, "redis", REDIS_PORT)}
        if "gateway_url" in settings.model_fields:
            edges |= {(service, "gateway", gateway_port)}
    return edges | {("client", service, PORTS[service]) for service in SERVICES}


def parties(overlay: Overlay) -> dict[str, Labels]:
    """Everyone who might call or be called, with the labels of their pods."""
    found = {
        f"{each.service} migration" if each in overlay.migrations else each.service: each.labels
        for each in overlay.workloads
    }
    # Somebody else's pod of the namespace, and one that is let in by its label.
    return found | {"stranger": {f"{LABEL}name": "stranger"}, "client": CLIENT}


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
        inside = other.namespace == OURS
    return inside and selects(peer.get("podSelector", {}), other.labels)


def _port_matches(entry: Object, port: int, protocol: str) -> bool:
    if entry.get("protocol", "TCP") != protocol:
        return False
    first: Any = entry.get("port")
    return first is None or bool(first <= port <= entry.get("endPort", first))


def allowed(
    overlay: Overlay,
    direction: str,
    own: Labels,
    other: Other,
    *,
    port: int,
    protocol: str = "TCP",
) -> bool:
    """Whether the policies let a pod through in one direction, as a cluster would decide it."""
    peers, kind = ("from", "Ingress") if direction == "ingress" else ("to", "Egress")
    about = [
        each["spec"]
        for each in overlay.of_kind("NetworkPolicy")
        if kind in each["spec"]["policyTypes"] and selects(each["spec"]["podSelector"], own)
    ]
    if not about:
        return True
    for entry in (entry for spec in about for entry in spec.get(direction) or []):
        ports, sources = entry.get("ports"), entry.get(peers)
        if ports and not any(_port_matches(one, port, protocol) for one in ports):
            continue
        if not sources or any(_peer_matches(one, other) for one in sources):
            return True
    return False


def reach(overlay: Overlay) -> set[Edge]:
    """The edges that the policies allow, both sides heard, on the ports anybody listens on."""
    everyone = parties(overlay)
    edges = set()
    for who, labels in everyone.items():
        for port in LISTENING:
            for whom, callee in everyone.items():
                if who != whom and (
                    allowed(overlay, "egress", labels, Other(callee), port=port)
                    and allowed(overlay, "ingress", callee, Other(labels), port=port)
                ):
                    edges.add((who, whom, port))
            for whom, address in OUTSIDE.items():
                if whom not in everyone and allowed(
                    overlay, "egress", labels, Other(address=address), port=port
                ):
                    edges.add((who, whom, port))
    return edges


def _merged(edges: set[Edge], overlay: Overlay) -> set[Edge]:
    """In production a private address may be either server's: told apart by the port alone."""
    if overlay.name != "production":
        return edges
    return {
        (who, "private" if whom in ("postgres", "redis") else whom, port)
        for who, whom, port in edges
    }


@rule
def policies_allow_the_calls_of_the_code_and_no_others(overlay: Overlay) -> Iterator[str]:
    needed, found = _merged(calls(overlay), overlay), _merged(reach(overlay), overlay)
    for who, whom, port in sorted(needed - found):
        yield f"NetworkPolicy: {who} may not call {whom} on {port}, and has to"
    for who, whom, port in sorted(found - needed):
        yield f"NetworkPolicy: {who} may call {whom} on {port}, and never does"


@rule
def everything_is_denied_by_default(overlay: Overlay) -> Iterator[str]:
    for each in overlay.of_kind("NetworkPolicy"):
        spec = each["spec"]
        if (
            spec["podSelector"] == {}
            and sorted(spec["policyTypes"]) == ["Egress", "Ingress"]
            and not spec.get("ingress")
            and not spec.get("egress")
        ):
            return
    yield "NetworkPolicy: nothing denies what nobody allows"


@rule
def metrics_are_for_prometheus(overlay: Overlay) -> Iterator[str]:
    """Scraped from the namespace of monitoring, and open to nobody here."""
    for each in overlay.servers:
        sources = [
            peer
            for policy in overlay.of_kind("NetworkPolicy")
            if selects(policy["spec"]["podSelector"], each.labels)
            for entry in policy["spec"].get("ingress") or []
            if any(_port_matches(one, 9464, "TCP") for one in entry["ports"])
            for peer in entry.get("from") or [{"podSelector": {}}]
        ]
        if not sources:
            yield f"{each.told}: its metrics cannot be read"
        if any("namespaceSelector" not in peer for peer in sources):
            yield f"{each.told}: its metrics can be read by anybody here"
