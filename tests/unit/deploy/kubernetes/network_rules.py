"""Rules about network policies: they allow the calls that the code makes, and no others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from ipaddress import ip_network
from itertools import product
from typing import Any, Final

from order_service.clients import Services
from tests.unit.deploy.kubernetes.engine import OVERLAY, Control, added, bad, removed, rule
from tests.unit.deploy.kubernetes.manifests import (
    GONE,
    LABEL,
    LOCAL,
    METRICS_PORT,
    PORTS,
    PRODUCTION,
    SERVICES,
    SETTINGS_OF,
    Item,
    Labels,
    Object,
    Overlay,
    selects,
)

AUDIT: Final = "Deployment/audit"
"""It is in the component of that name, which an overlay may add."""
Edge = tuple[str, str, str]
"""The caller, the callee, and the port with its protocol."""
POSTGRES_PORT, REDIS_PORT, GATEWAY_PORT, OTLP_PORT = 5432, 6379, 50055, 4317
CLIENT: Final = {"tally.dev/client": "true"}
CLIENTS, MONITORING, DNS = "namespaces of clients", "monitoring", "the cluster's DNS"
PRIVATE, PUBLIC, ONE, ANYTHING = "private", "public", "one address", "anything"
ELSEWHERE: Final[dict[str, Object]] = {
    ANYTHING: {},
    CLIENTS: {"namespaceSelector": {"matchLabels": CLIENT}},
    MONITORING: {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": MONITORING}}},
    DNS: {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
        "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
    },
}
"""The peers of other namespaces that a policy may name."""
RFC_1918: Final = tuple(map(ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")))


def pods(overlay: Overlay) -> dict[str, Labels]:
    """The labels of the overlay's pods, of a client's, and of a stranger's, by name."""
    own = {
        f"{each.service} migration" if each in overlay.migrations else each.service: each.labels
        for each in overlay.workloads
    }
    return {**own, "client": CLIENT, "stranger": {f"{LABEL}name": "stranger"}}


def calls_of_the_code(overlay: Overlay) -> set[Edge]:
    """The calls that the code makes, from its clients and its settings."""
    outside = {"postgres": PRIVATE, "redis": PRIVATE, "gateway": PUBLIC}
    servers = outside if overlay.name == PRODUCTION else {name: name for name in outside}
    gateway_port = 443 if overlay.name == PRODUCTION else GATEWAY_PORT
    edges = {("order", peer.name, overlay.port_of_peers(peer.name)) for peer in fields(Services)}
    edges |= {("client", service, PORTS[service]) for service in SERVICES}
    for service, settings in SETTINGS_OF.items():
        for setting, caller, server, port in (
            ("database_url", service, "postgres", POSTGRES_PORT),
            ("owner_database_url", f"{service} migration", "postgres", POSTGRES_PORT),
            ("redis_url", service, "redis", REDIS_PORT),
            ("gateway_url", service, "gateway", gateway_port),
        ):
            if setting in settings.model_fields:
                edges |= {(caller, servers[server], port)}
    if overlay.has(AUDIT):
        edges |= {("audit", servers["postgres"], POSTGRES_PORT)}
    if overlay.name == PRODUCTION:
        # The keys of tokens, from their issuer.
        edges |= {(service, PUBLIC, 443) for service in SERVICES}
    return {(caller, callee, f"TCP {port}") for caller, callee, port in edges}


def calls_with_the_rest(overlay: Overlay) -> set[Edge]:
    """Those of clients elsewhere, of Prometheus, and the lookups of names."""
    callers = {name for name in pods(overlay) if name.split()[0] in (*SERVICES, "audit", "client")}
    measured = [*SERVICES, "audit"] if overlay.has(AUDIT) else SERVICES
    return (
        {(CLIENTS, service, f"TCP {PORTS[service]}") for service in SERVICES}
        | {(MONITORING, each, f"TCP {METRICS_PORT}") for each in measured}
        | {(name, DNS, f"{protocol} 53") for name in callers for protocol in ("TCP", "UDP")}
    )


def may_be_allowed(edge: Edge) -> bool:
    """DNS at a single address, and spans to a collector, are for an overlay to open."""
    caller, callee, port = edge
    return (callee == ONE and port in ("TCP 53", "UDP 53")) or (
        (callee, port) == (MONITORING, f"TCP {OTLP_PORT}") and caller in SERVICES
    )


def calls_allowed(overlay: Overlay) -> set[Edge]:
    """What the policies let through: between pods, what those of both ends do on one port."""
    known = pods(overlay)
    out, into = set[Edge](), set[Edge]()
    for policy in overlay.of_kind("NetworkPolicy"):
        selector = policy.get("spec.podSelector")
        own = [name for name, labels in known.items() if selects(selector, labels)]
        for far, port in _far_ends(policy, "egress", "to", known):
            out |= {(each, far, port) for each in own}
        for far, port in _far_ends(policy, "ingress", "from", known):
            into |= {(far, each, port) for each in own}
    return {
        (caller, callee, port)
        for caller, callee, port in out | into
        if caller != callee
        and (
            not known.keys() >= {caller, callee}
            or port.endswith(" port")
            or (caller, callee, port) in out & into
        )
    }


def _far_ends(
    policy: Item, direction: str, peers: str, known: dict[str, Labels]
) -> Iterator[tuple[str, str]]:
    for entry in policy.get(f"spec.{direction}", []):
        for peer, port in product(entry.get(peers) or [{}], entry.get("ports") or [{}]):
            yield from product(_names(peer, known), _numbers(port))


def _names(peer: Object, known: dict[str, Labels]) -> list[str]:
    """What a peer stands for: pods of this namespace, a known peer, or kinds of addresses."""
    if set(peer) == {"podSelector"}:
        return [name for name, labels in known.items() if selects(peer["podSelector"], labels)]
    if "ipBlock" in peer:
        network = ip_network(peer["ipBlock"]["cidr"])
        excepted = set(map(ip_network, peer["ipBlock"].get("except", [])))
        if network.num_addresses == 1:
            return [ONE]
        if any(network.subnet_of(each) for each in RFC_1918):  # type: ignore[arg-type]  # all are IPv4
            return [PRIVATE]
        return [PUBLIC if excepted.issuperset(RFC_1918) else ANYTHING]
    return [name for name, known_peer in ELSEWHERE.items() if peer == known_peer] or [str(peer)]


def _numbers(port: Object) -> list[str]:
    protocol = port.get("protocol", "TCP")
    if "port" not in port:
        return [f"{protocol if port else 'any'} port"]
    first = int(port["port"])
    return [f"{protocol} {number}" for number in range(first, port.get("endPort", first) + 1)]


def opens(says: str, overlay: str | None = None, **entries: Any) -> Control:
    """Add a policy for every pod, with these entries of ``ingress`` or ``egress``."""
    spec = {"podSelector": {}, "policyTypes": [], **entries}
    policy = {"kind": "NetworkPolicy", "metadata": {"name": "wide"}, "spec": spec}
    return added(policy, f"may: {says}", overlay)


ANY_POD: Final[Object] = {"podSelector": {}}
ANY_NAMESPACE: Final[Object] = {"namespaceSelector": {}}
ANYWHERE: Final[Object] = {"ipBlock": {"cidr": "0.0.0.0/0"}}
DENY, TO_DNS = "NetworkPolicy/default-deny", "NetworkPolicy/callers-to-dns"
FROM_CLIENTS: Final = "NetworkPolicy/balance-from-clients"
FROM_PROMETHEUS: Final = "NetworkPolicy/servers-from-prometheus"
TO, FROM = "spec.egress[0].to", "spec.ingress[0].from"


@rule(
    OVERLAY,
    removed("NetworkPolicy/order-to-coupon", "may not: order, coupon, TCP 50062"),
    removed("NetworkPolicy/payment-from-order", "may not: order, payment, TCP 50064"),
    removed("NetworkPolicy/payment-from-order", "may not: order, payment, TCP 50054", LOCAL),
    removed("NetworkPolicy/payment-to-gateway", "may not: payment, gateway, TCP 50055", LOCAL),
    removed("NetworkPolicy/servers-to-issuer", "may not: order, public, TCP 443", PRODUCTION),
    removed("NetworkPolicy/clients-to-dns", "may not: client, the cluster's DNS, TCP 53"),
    bad(GONE, f"{FROM}[1]", FROM_CLIENTS, "may not: namespaces of clients, balance, TCP"),
    bad(ANY_NAMESPACE, f"{FROM}[1]", FROM_CLIENTS, "may: {'namespaceSelector': {}}, balance"),
    bad({}, f"{FROM}[0].namespaceSelector", FROM_CLIENTS, "'namespaceSelector': {}}, balance"),
    bad(ANY_POD, f"{FROM}[0]", FROM_PROMETHEUS, "may not: monitoring, order, TCP 9464"),
    bad(GONE, "spec.egress[0].ports[0]", TO_DNS, "may not: order, the cluster's DNS, UDP 53"),
    bad(GONE, TO, TO_DNS, "may: coupon, anything, UDP 53"),
    bad({}, f"{TO}[0].podSelector", TO_DNS, "may: order, {'namespaceSelector'"),
    bad("10.96.0.0/24", f"{TO}[1].ipBlock.cidr", TO_DNS, "may: order, private, TCP 53"),
    opens("order, {'namespaceSelector': {}}, any port", egress=[{"to": [ANY_NAMESPACE]}]),
    opens("stranger, postgres, any port", LOCAL, egress=[{"to": [ANY_POD]}], ingress=[{}]),
    opens(
        "gateway, anything, UDP 54",
        *(LOCAL,),
        egress=[{"to": [ANYWHERE], "ports": [{"protocol": "UDP", "port": 53, "endPort": 60}]}],
    ),
    opens(
        "order, anything, SCTP port", egress=[{"to": [ANYWHERE], "ports": [{"protocol": "SCTP"}]}]
    ),
)
def policies_allow_the_calls_of_the_code_and_no_others(whole: Item) -> Iterator[str]:
    """Where callers are not authenticated, the network decides who moves money.

    The port of probes is open to nobody: the kubelet is on the node, and needs no policy.
    A label on a pod elsewhere lets nobody in, for its owner chooses it. Everything but lookups of
    names is TCP, and lookups go to DNS servers only, for they could carry anything.
    """
    needed = calls_of_the_code(whole.overlay) | calls_with_the_rest(whole.overlay)
    found = calls_allowed(whole.overlay)
    yield from (f"may not: {', '.join(edge)}" for edge in needed - found)
    yield from (f"may: {', '.join(edge)}" for edge in found - needed if not may_be_allowed(edge))


@rule(
    OVERLAY,
    removed(DENY, "no policy denies"),
    bad(["Ingress"], "spec.policyTypes", DENY, "no policy denies"),
    bad(["Ingress"], "spec.policyTypes", TO_DNS, "callers-to-dns does not decide about egress"),
)
def policies_deny_what_they_do_not_allow(whole: Item) -> Iterator[str]:
    """A pod that no policy of a direction selects may call, or be called by, anything."""
    specs = {each.name: each.raw["spec"] for each in whole.overlay.of_kind("NetworkPolicy")}
    if {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]} not in specs.values():
        yield "no policy denies both directions for every pod"
    for name, spec in specs.items():
        for direction in {"ingress", "egress"} & spec.keys():
            if direction.capitalize() not in spec["policyTypes"]:
                yield f"{name} does not decide about {direction}"
