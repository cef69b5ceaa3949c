"""Rules about ports, Services, addresses, and the names, namespaces and labels of all objects."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

from deploy.kubernetes.secrets import GATEWAY, POSTGRES, REDIS
from tests.unit.deploy.kubernetes.engine import (
    OBJECTS,
    OVERLAY,
    SERVERS,
    SET,
    UNSET,
    Check,
    Control,
    Must,
    Rule,
    added,
    bad,
    equal,
    matches,
    named,
    of_kind,
    removed,
    rule,
)
from tests.unit.deploy.kubernetes.manifests import (
    GONE,
    LABEL,
    LOCAL,
    METRICS_PORT,
    MULTI,
    NAMESPACE,
    PEER_PORTS,
    PORTS,
    PROBE_PORT,
    PRODUCTION,
    SERVICES,
    Item,
)

HEADLESS: Final = "-headless"
ORDER_HEADLESS: Final = "Service/order-headless"


def declared_ports(each: Item) -> dict[str, int]:
    return each.ports


def ports_that_are_bound(each: Item) -> dict[str, int]:
    found = {"grpc": PORTS[each.service], "metrics": METRICS_PORT}
    if each.overlay.has_tls:
        found["probes"] = PROBE_PORT
        if each.service in PEER_PORTS:
            found["peers"] = PEER_PORTS[each.service]
    return found


def bound(port: int | None) -> str:
    return "" if port is None else f"0.0.0.0:{port}"


ports_are_those_bound = Rule(
    "A port that no process binds refuses every call.",
    SERVERS,
    Check(
        declared_ports,
        ports_that_are_bound,
        bad(50051, "container.ports[grpc].containerPort"),
        bad(50051, "container.ports[peers].containerPort", "Deployment/balance"),
    ),
    Check(
        "setting.peer_bind",
        lambda each: bound(PEER_PORTS.get(each.service) if each.overlay.has_tls else None),
        bad("0.0.0.0:50051", "env[TALLY_PEER_BIND].value"),
    ),
    Check(
        "setting.probe_bind",
        lambda each: bound(PROBE_PORT if each.overlay.has_tls else None),
        bad("127.0.0.1:50050", "env[TALLY_PROBE_BIND].value"),
    ),
    Check(
        "setting.bind",
        lambda each: f"0.0.0.0:{PORTS[each.service]}",
        bad("127.0.0.1:50053", "env[TALLY_BIND].value"),
        bad("0.0.0.0:50063", "env[TALLY_ORDER_BIND].value"),
    ),
    Check("setting.metrics_port", f"{METRICS_PORT}", bad("9", "env[TALLY_METRICS_PORT].value")),
)


def service_of(each: Item) -> str:
    return each.name.removesuffix(HEADLESS)


def behind(service: Item) -> Item:
    """The workload of the Service's name."""
    found = (each for each in service.overlay.workloads if each.name == service_of(service))
    return next(found, Item(service.overlay, {}))


def closed_ports(service: Item) -> list[Any]:
    """The ports of a Service that its workload does not have under the same number."""
    ports = behind(service).ports
    return [one for one in service.get("spec.ports") if ports.get(one["targetPort"]) != one["port"]]


services_lead_to_one_workload = Rule(
    "Calls would end nowhere, at pods of another kind, or at a closed port.",
    of_kind("Service"),
    Check(
        "spec.selector",
        lambda each: behind(each).get("spec.selector.matchLabels", "that of its workload"),
        bad({f"{LABEL}name": "order"}),
        bad("orders", "metadata.name", says="Service/orders"),
    ),
    Check(closed_ports, [], bad("http", "spec.ports[0].targetPort"), bad(1, "spec.ports[0].port")),
)


def names_of_services(whole: Item) -> list[str]:
    return [each.name for each in of_kind("Service").select(whole.overlay)]


servers_have_both_services = Rule(
    "A headless one for clients that balance by themselves, one with an address for others.",
    OVERLAY,
    Check(
        names_of_services,
        Must("complete", {f"{each}{end}" for each in SERVICES for end in ("", HEADLESS)}.issubset),
        removed(ORDER_HEADLESS, "is not complete"),
    ),
)


def port_for_grpc(each: Item) -> dict[str, object]:
    return {
        "name": "grpc",
        "appProtocol": "https" if each.overlay.has_tls else "kubernetes.io/h2c",
        "protocol": "TCP",
        "port": PORTS[service_of(each)],
        "targetPort": "grpc",
    }


def port_for_metrics(each: Item) -> dict[str, object]:
    return {
        "name": "metrics",
        "appProtocol": "https" if each.overlay.has_tls else "http",
        "protocol": "TCP",
        "port": METRICS_PORT,
        "targetPort": "metrics",
    }


def ports_for_peers(each: Item) -> list[int]:
    return [one["port"] for one in each.get("spec.ports")[2:] if one["targetPort"] == "peers"]


def peers_behind(each: Item) -> list[int]:
    """Services call each other by headless names."""
    port = PEER_PORTS.get(service_of(each)) if each.overlay.has_tls else None
    return [port] if port and each.name.endswith(HEADLESS) else []


services_of_servers_balance_grpc = Rule(
    "Meshes and gateways go by appProtocol; a replica that is not ready must get no call.",
    of_kind("Service").where(lambda each: service_of(each) in SERVICES),
    Check("spec.ports[0]", port_for_grpc, bad(GONE, "spec.ports[0].appProtocol")),
    Check("spec.ports[1]", port_for_metrics, bad("grpc", "spec.ports[1].targetPort")),
    Check(
        ports_for_peers,
        peers_behind,
        bad(
            GONE,
            "spec.ports[2]",
            "Service/payment-headless",
            "Service/payment-headless",
            PRODUCTION,
        ),
    ),
    Check(
        "spec.clusterIP",
        lambda each: "None" if each.name.endswith(HEADLESS) else None,
        bad("None"),
        bad(GONE, on=ORDER_HEADLESS),
    ),
    Check("spec.publishNotReadyAddresses", UNSET, bad(True, on=ORDER_HEADLESS)),
)

services_are_for_the_cluster_alone = Rule(
    "Callers are not authenticated: what lets the world in belongs to the platform.",
    of_kind("Service"),
    Check("spec.type", equal("ClusterIP", "ClusterIP"), bad("NodePort", on="Service/gateway")),
    Check("spec.externalIPs", UNSET, bad(["10.1.2.3"], on="Service/postgres")),
    Check("spec.loadBalancerIP", UNSET, bad("10.1.2.3")),
    Check("spec.externalName", UNSET, bad("example.com")),
    Check("spec.ports[*].nodePort", UNSET, bad(30053, "spec.ports[0].nodePort")),
    # Else a client stays with one replica.
    Check("spec.sessionAffinity", equal("None", "None"), bad("ClientIP")),
)

# ---- addresses


def address_of_peer(peer: str, order: Item) -> str:
    return f"dns:///{peer}{HEADLESS}:{order.overlay.port_of_peers(peer)}"


order_calls_every_replica = Rule(
    "Behind the one address of a Service, all calls of a client would go to one replica.",
    named("Deployment/order"),
    *(
        Check(
            f"setting.{peer}_address",
            partial(address_of_peer, peer),
            bad(f"dns:///{peer}:{PORTS[peer]}", f"env[TALLY_ORDER_{peer.upper()}_ADDRESS].value"),
        )
        for peer in SERVICES
        if peer != "order"
    ),
)


def addresses_of_other_services(whole: Item) -> list[str]:
    return [
        f"{each.name}:{each.get('spec.ports[0].port')}"
        for each in of_kind("Service").select(whole.overlay)
        if service_of(each) not in SERVICES
    ]


secrets_name_services = Rule(
    "The Secrets are made by a program, for the overlays with servers of their own.",
    OVERLAY.only(LOCAL, MULTI),
    Check(
        addresses_of_other_services,
        [GATEWAY.removeprefix("http://"), POSTGRES, REDIS],
        bad(5433, "spec.ports[0].port", "Service/postgres", "postgres:5433"),
        removed("Service/redis", "redis:6379"),
    ),
)


def gateway_url(url: str, overlay: str) -> Control:
    path = "data.TALLY_PAYMENT_GATEWAY_URL"
    return bad(url, path, "ConfigMap/payment-settings*", "Deployment/payment", overlay)


the_gateway_is_called_over_tls = Rule(
    "With the merchant's key, on the port that the policy opens. `local` calls the simulator.",
    named("Deployment/payment"),
    Check(
        "setting.gateway_url",
        lambda each: (
            matches(r"https://[\w-]+(\.[\w-]+)+(:443)?(/.*)?")
            if each.overlay.name == PRODUCTION
            else GATEWAY
        ),
        gateway_url("http://api.tosspayments.com:443", PRODUCTION),
        gateway_url("https://gateway", PRODUCTION),
        gateway_url("https://api.tosspayments.com:8443", PRODUCTION),
        gateway_url("http://gateway:8080", LOCAL),
    ),
)

# ---- all objects

namespace_is_tally = Rule(
    "kubectl puts an object without a namespace into that of its user.",
    OBJECTS.where(lambda each: each.kind not in ("Namespace", "PriorityClass")),
    Check("metadata.namespace", NAMESPACE, bad(GONE)),
)


def namespaces(whole: Item) -> list[str]:
    return [each.name for each in whole.overlay.of_kind("Namespace")]


def names_given_twice(whole: Item) -> list[str]:
    titles = [each.title for each in whole.overlay.items]
    return [title for title in titles if titles.count(title) > 1]


names_are_unique = Rule(
    "No object can be made before its namespace, and the later of one name replaces the earlier.",
    OVERLAY,
    Check(namespaces, [NAMESPACE], removed(f"Namespace/{NAMESPACE}", NAMESPACE)),
    Check(names_given_twice, [], added({"kind": "Service", "metadata": {"name": "order"}})),
)

namespace_refuses_pods_with_privileges = Rule(
    "The restricted Pod Security Standard, enforced for the pods of others too.",
    of_kind("Namespace", NAMESPACE),
    Check("metadata.labels[pod-security.kubernetes.io/enforce]", "restricted", bad(GONE)),
    Check("metadata.labels[pod-security.kubernetes.io/audit]", "restricted", bad(GONE)),
    Check("metadata.labels[pod-security.kubernetes.io/warn]", "restricted", bad("baseline")),
)

labels_are_complete = Rule(
    "The recommended labels: kubectl, dashboards and policies select by them.",
    OBJECTS,
    Check(f"metadata.labels[{LABEL}name]", SET, bad(GONE)),
    Check(f"metadata.labels[{LABEL}component]", SET, bad(GONE)),
    Check(f"metadata.labels[{LABEL}part-of]", SET, bad(GONE)),
    Check(f"metadata.labels[{LABEL}managed-by]", SET, bad(GONE)),
    Check(f"metadata.labels[{LABEL}instance]", lambda each: each.overlay.name, bad("x")),
)

prometheus_finds_the_metrics = Rule(
    "It scrapes the pods with these annotations.",
    SERVERS,
    Check("spec.template.metadata.annotations[prometheus.io/scrape]", "true", bad(GONE)),
    Check("spec.template.metadata.annotations[prometheus.io/path]", "/metrics", bad("/")),
    Check("spec.template.metadata.annotations[prometheus.io/port]", f"{METRICS_PORT}", bad("1")),
    Check(
        "spec.template.metadata.annotations[prometheus.io/scheme]",
        lambda each: equal("https" if each.overlay.has_tls else None),
        bad("http"),
    ),
)

_MONITOR: Final = {
    "kind": "PodMonitor",
    "metadata": {"name": "tally"},
    "spec": {"podMetricsEndpoints": [{"port": "metrics"}]},
}
_AUDIT: Final = {
    "kind": "Deployment",
    "metadata": {"name": "audit"},
    "spec": {"template": {"metadata": {"labels": {f"{LABEL}component": "audit"}}}},
}


@rule(
    OVERLAY.where(lambda whole: whole.overlay.has_tls),
    added(_MONITOR, "PodMonitor/tally", PRODUCTION),
    added(_AUDIT, "Deployment/audit", PRODUCTION),
)
def components_that_tls_changes_stand_before_it(whole: Item) -> list[str]:
    """A patch changes what the components before it add; of those after it, it finds nothing."""
    monitors = [
        each.title
        for each in whole.overlay.of_kind("PodMonitor")
        if each.values("spec.podMetricsEndpoints[*].scheme") != ["https"]
        or not each.get("spec.podMetricsEndpoints[0].tlsConfig")
    ]
    audits = [
        each.title
        for each in whole.overlay.workloads
        if each.component == "audit" and "TALLY_AUDIT_TLS_DIR" not in each.environment
    ]
    return monitors + audits
