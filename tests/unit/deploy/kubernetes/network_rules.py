"""Rules about network policies: their edges are the calls that the code makes, and no others."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import Any, Final

from tests.unit.deploy.kubernetes.engine import (
    OVERLAY,
    SERVERS,
    Control,
    added,
    bad,
    of_kind,
    removed,
    rule,
)
from tests.unit.deploy.kubernetes.manifests import (
    GONE,
    LOCAL,
    METRICS_PORT,
    NAMESPACE,
    PORTS,
    Item,
    Object,
    selects,
)
from tests.unit.deploy.kubernetes.network import (
    CLIENT,
    DNS_PORT,
    LISTENING,
    RESOLVER,
    TALLY,
    UNKNOWN,
    allowed,
    calls_allowed,
    calls_of_the_code,
    outsiders,
    parties,
    pods,
    port_matches,
)

ANY_POD: Final[Object] = {"podSelector": {}}
ANY_NAMESPACE: Final[Object] = {"namespaceSelector": {}}
ANYWHERE: Final[Object] = {"ipBlock": {"cidr": "0.0.0.0/0"}}
PRIVATE: Final[Object] = {"ipBlock": {"cidr": "10.0.0.0/8"}}
DENY: Final = "NetworkPolicy/default-deny"
FROM_PROMETHEUS: Final = "NetworkPolicy/servers-from-prometheus"
FROM_CLIENTS: Final = "NetworkPolicy/balance-from-clients"
TO_DNS, CLIENTS_TO_DNS = "NetworkPolicy/callers-to-dns", "NetworkPolicy/clients-to-dns"
POLICIES: Final = of_kind("NetworkPolicy", "callers-to-dns")


def wide(says: str, overlay: str | None = None, **entries: Any) -> Control:
    """Add a policy for every pod, with these entries of ``ingress`` or ``egress``."""
    types = [each.capitalize() for each in entries]
    spec = {"podSelector": {}, "policyTypes": types, **entries}
    metadata = {"name": "wide", "namespace": NAMESPACE}
    return added({"kind": "NetworkPolicy", "metadata": metadata, "spec": spec}, says, overlay)


def way_out(says: str, **port: Any) -> Control:
    """Add a way out for every pod to any address, on one port or on all."""
    return wide(says, egress=[{"to": [ANYWHERE], **({"ports": [port]} if port else {})}])


@rule(
    OVERLAY,
    removed("NetworkPolicy/order-to-coupon", "order may not call coupon on 50052"),
    removed("NetworkPolicy/payment-from-order", "order may not call payment on 50054"),
    removed("NetworkPolicy/payment-to-gateway", "payment may not call gateway on 443"),
    wide("coupon may call private on 22", egress=[{"to": [PRIVATE]}]),
    wide("stranger may call postgres on 5432", LOCAL, egress=[{"to": [ANY_POD]}], ingress=[{}]),
    removed(DENY, "gateway may call balance migration on 22", LOCAL),
)
def policies_allow_the_calls_of_the_code_and_no_others(whole: Item) -> Iterator[str]:
    """Callers are not authenticated: the network decides who moves money."""
    needed, found = calls_of_the_code(whole.overlay), calls_allowed(whole.overlay)
    yield from (f"{who} may not call {whom} on {port}" for who, whom, port in needed - found)
    yield from (f"{who} may call {whom} on {port}" for who, whom, port in found - needed)


@rule(OVERLAY, bad(["Ingress"], "spec.policyTypes", DENY, "no policy denies"))
def everything_is_denied_by_default(whole: Item) -> list[str]:
    """A pod that no policy selects may call and be called by anything."""
    specs = [each.raw["spec"] for each in whole.overlay.of_kind("NetworkPolicy")]
    denies = [
        spec
        for spec in specs
        if spec["podSelector"] == {}
        and sorted(spec["policyTypes"]) == ["Egress", "Ingress"]
        and not spec.get("ingress")
        and not spec.get("egress")
    ]
    return [] if denies else ["no policy denies both directions for every pod"]


@rule(
    OVERLAY,
    bad(
        *(ANY_NAMESPACE, "spec.ingress[0].from[1]", FROM_CLIENTS),
        "stranger elsewhere may call balance on 50051",
    ),
    bad(
        *({}, "spec.ingress[0].from[0].namespaceSelector", FROM_CLIENTS),
        "client elsewhere may call balance on 50051",
    ),
    bad(
        *(GONE, "spec.ingress[0].from[1]", FROM_CLIENTS),
        "a namespace of clients may not call balance on 50051",
    ),
    bad(
        *(ANYWHERE, "spec.ingress[0].from[0]", FROM_PROMETHEUS),
        "an unknown address may call order on 9464",
    ),
    wide("kube-system may call postgres on 5432", LOCAL, ingress=[{"from": [ANY_NAMESPACE]}]),
)
def only_clients_and_monitoring_get_in(whole: Item) -> Iterator[str]:
    """A label on a pod elsewhere lets nobody in: its owner chooses it."""
    overlay = whole.overlay
    servers = {each.service for each in overlay.servers}
    for outsider, other in outsiders(overlay).items():
        for callee, labels in pods(overlay).items():
            for port in LISTENING:
                needed = callee in servers and (outsider, port) in (
                    ("a namespace of clients", PORTS[callee]),
                    ("monitoring", METRICS_PORT),
                )
                found = allowed(overlay, "ingress", labels, other, port=port)
                if found is not needed:
                    may = "may" if found else "may not"
                    yield f"{outsider} {may} call {callee} on {port}"


@rule(
    OVERLAY,
    wide("order may call stranger elsewhere on 443", egress=[{"to": [ANY_NAMESPACE]}]),
    bad(GONE, "spec.egress[0].to[0].podSelector", TO_DNS, "coupon may call kube-system on 53"),
    removed(DENY, "stranger may call balance elsewhere on 50051"),
)
def nobody_gets_out_into_other_namespaces(whole: Item) -> Iterator[str]:
    """Except for DNS. Another namespace has other owners."""
    others = outsiders(whole.overlay) | {"the resolver": RESOLVER}
    for caller, labels in parties(whole.overlay).items():
        for callee, other in others.items():
            for port in (*LISTENING, DNS_PORT):
                if other.address or (callee, port) == ("the resolver", DNS_PORT):
                    continue
                if allowed(whole.overlay, "egress", labels, other, port=port):
                    yield f"{caller} may call {callee} on {port}"


@rule(
    SERVERS,
    removed(FROM_PROMETHEUS, "Deployment/order: its metrics cannot be read"),
    bad(ANY_POD, "spec.ingress[0].from[0]", FROM_PROMETHEUS, "order: its metrics can be read by"),
)
def metrics_are_for_prometheus(each: Item) -> Iterator[str]:
    """Scraped from the namespace of monitoring, and closed to every pod of this one."""
    readers = [
        peer
        for policy in each.overlay.of_kind("NetworkPolicy")
        if selects(policy.get("spec.podSelector"), each.labels)
        for entry in policy.values("spec.ingress[*]")
        if any(port_matches(one, METRICS_PORT) for one in entry.get("ports") or [{}])
        for peer in entry.get("from") or [ANY_POD]
    ]
    if not readers:
        yield "its metrics cannot be read"
    if any("namespaceSelector" not in peer for peer in readers):
        yield "its metrics can be read by any pod of this namespace"


@rule(
    OVERLAY,
    bad(GONE, "spec.egress[0].ports[0]", TO_DNS, "Deployment/order may not look up names by UDP"),
    bad(GONE, "spec.egress[0].to", TO_DNS, "Deployment/order may send anything to any address"),
    removed(CLIENTS_TO_DNS, "a client may not look up names by TCP"),
    bad([], "spec.egress", CLIENTS_TO_DNS, "a client may not look up names by UDP"),
)
def callers_may_look_up_names(whole: Item) -> Iterator[str]:
    """At the cluster's DNS servers and nowhere else, where a lookup could carry anything."""
    overlay, port = whole.overlay, DNS_PORT
    callers = {each.title: each.labels for each in overlay.servers + overlay.migrations}
    for caller, own in {**callers, "a client": CLIENT}.items():
        for protocol in ("UDP", "TCP"):
            if not allowed(overlay, "egress", own, RESOLVER, port=port, protocol=protocol):
                yield f"{caller} may not look up names by {protocol}"
            if allowed(overlay, "egress", own, UNKNOWN, port=port, protocol=protocol):
                yield f"{caller} may send anything to any address by {protocol}"


def is_dns(port: Object) -> bool:
    return port.get("port") == DNS_PORT and port.get("endPort", DNS_PORT) == DNS_PORT


@rule(
    POLICIES,
    way_out("UDP on 4444", protocol="UDP", port=4444),
    way_out("UDP on 50", protocol="UDP", port=50, endPort=60),
    way_out("SCTP on every port", protocol="SCTP"),
    way_out("every protocol on every port"),
)
def only_lookups_are_datagrams(policy: Item) -> list[str]:
    """Everything else that leaves is TCP."""
    return [
        f"lets out {port['protocol']} on {port.get('port', 'every port')}"
        for entry in policy.values("spec.egress[*]")
        for port in entry.get("ports") or [{"protocol": "every protocol"}]
        if port.get("protocol", "TCP") != "TCP" and not is_dns(port)
    ]


@rule(
    POLICIES,
    way_out("all of 0.0.0.0/0", protocol="TCP", port=DNS_PORT),
    bad(GONE, "spec.egress[0].to", says="all of 0.0.0.0/0"),
    bad({}, "spec.egress[0].to[0].podSelector", says="every pod of a namespace"),
    bad(GONE, "spec.egress[0].to[0].namespaceSelector", says="pods of this or any namespace"),
)
def dns_servers_are_single_servers(policy: Item) -> Iterator[str]:
    """Port 53 is open to the cluster's DNS servers, not to whatever listens there."""
    for entry in policy.values("spec.egress[*]"):
        if not any(map(is_dns, entry.get("ports") or [])):
            continue
        for peer in entry.get("to") or [ANYWHERE]:
            block = peer.get("ipBlock", {}).get("cidr")
            if block is not None:
                if ipaddress.ip_network(block).num_addresses > 1:
                    yield f"takes all of {block} for DNS servers"
            elif not peer.get("podSelector"):
                yield "takes every pod of a namespace for a DNS server"
            elif peer.get("namespaceSelector", {}).get("matchLabels") in (None, TALLY):
                yield "takes pods of this or any namespace for DNS servers"
