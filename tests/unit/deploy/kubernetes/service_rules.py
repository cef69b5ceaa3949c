"""Rules about Services and addresses: what a name leads to, and that what pods call is there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final
from urllib.parse import SplitResult, urlsplit

from tests.unit.deploy.kubernetes.engine import (
    OVERLAY,
    SERVERS,
    UNSET,
    Check,
    Control,
    Rule,
    bad,
    equal,
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
    PORTS,
    PRODUCTION,
    SERVICES,
    Item,
    Overlay,
    selects,
)
from tests.unit.deploy.kubernetes.network_rules import PUBLIC, calls_allowed
from tests.unit.deploy.kubernetes.setting_rules import SECRETS

DEFAULT_PORTS: Final = {"postgresql": 5432, "redis": 6379, "http": 80, "https": 443}
COMPONENTS: Final = {"postgresql": "database", "redis": "locks"}
"""The component that serves each scheme of the Secrets' addresses."""
_ADDRESS: Final = re.compile(r"\b[a-z]+://\S+")
HEADLESS: Final = "-headless"
POSTGRES: Final = "Service/postgres"


def service_of(each: Item) -> str:
    return each.name.removesuffix(HEADLESS)


GRPC_SERVICES: Final = of_kind("Service").where(lambda each: service_of(each) in SERVICES)


def selected(service: Item) -> list[Item]:
    """The workloads behind a Service."""
    selector = {"matchLabels": service.get("spec.selector")}
    return [each for each in service.overlay.workloads if selects(selector, each.labels)]


@rule(
    of_kind("Service"),
    bad({"app": "order"}, "spec.selector", says="Service/order: selects 0 workloads"),
    bad({f"{LABEL}name": "order"}, "spec.selector", says="Service/order: selects 2 workloads"),
    bad("http", "spec.ports[0].targetPort"),
    bad(50063, "spec.ports[0].port"),
)
def services_lead_to_one_workload(service: Item) -> Iterator[str]:
    """Calls would end nowhere, at pods of another kind, or at a closed port."""
    if len(selected(service)) != 1:
        yield f"selects {len(selected(service))} workloads, not one"
    for workload in selected(service):
        for port in service.get("spec.ports"):
            if workload.ports.get(port.get("targetPort")) != port["port"]:
                yield f"{workload.title} has no port {port}"


@rule(OVERLAY, removed("Service/order-headless"))
def servers_have_both_services(whole: Item) -> list[str]:
    """A headless one for clients that balance by themselves, one with an address for others."""
    wanted = {f"{service}{end}" for service in SERVICES for end in ("", HEADLESS)}
    found = {each.name for each in GRPC_SERVICES.select(whole.overlay)}
    return [f"there is no Service/{name}" for name in sorted(wanted - found)]


def is_headless(each: Item) -> bool:
    return bool(each.get("spec.clusterIP") == "None")


services_of_servers_balance_grpc = Rule(
    "Meshes and gateways go by appProtocol; a replica that is not ready must get no call.",
    GRPC_SERVICES,
    Check(
        is_headless,
        lambda each: each.name.endswith(HEADLESS),
        bad("None", "spec.clusterIP"),
        bad(GONE, "spec.clusterIP", "Service/order-headless"),
    ),
    Check("spec.publishNotReadyAddresses", UNSET, bad(True, on="Service/order-headless")),
    Check("spec.ports[0].name", "grpc", bad("http")),
    Check("spec.ports[0].appProtocol", "kubernetes.io/h2c", bad(GONE)),
    Check("spec.ports[0].port", lambda each: PORTS[service_of(each)], bad(50051)),
    Check(f"spec.selector[{LABEL}component]", "server", bad(GONE)),
)

services_are_for_the_cluster_alone = Rule(
    "Callers are not authenticated: what lets the world in belongs to the platform.",
    of_kind("Service"),
    Check(
        "spec.type",
        equal("ClusterIP", default="ClusterIP"),
        bad("LoadBalancer"),
        bad("NodePort", on="Service/gateway"),
    ),
    Check("spec.externalIPs", UNSET, bad(["10.1.2.3"], on="Service/postgres")),
    Check("spec.loadBalancerIP", UNSET, bad("10.1.2.3")),
    Check("spec.externalName", UNSET, bad("example.com")),
    Check("spec.ports[*].nodePort", UNSET, bad(30053, "spec.ports[0].nodePort")),
    # Else a client stays with one replica.
    Check("spec.sessionAffinity", equal("None", default="None"), bad("ClientIP")),
)


# ---- addresses


def serves(overlay: Overlay, host: str, port: int) -> bool:
    service = overlay.find("Service", host)
    return service is not None and port in service.values("spec.ports[*].port")


def port_of(url: SplitResult) -> int:
    return url.port or DEFAULT_PORTS.get(url.scheme, 0)


@rule(
    SERVERS,
    bad("dns:///coupon:50052", "env[TALLY_ORDER_COUPON_ADDRESS].value"),
    bad("dns:///coupon-headless:1", "env[TALLY_ORDER_COUPON_ADDRESS].value"),
)
def addresses_are_those_of_every_replica(each: Item) -> Iterator[str]:
    """Behind the one address of a Service, all calls of a client would go to one replica."""
    for name, value in each.environment.items():
        if name.endswith("_ADDRESS"):
            service = name.removeprefix("TALLY_ORDER_").removesuffix("_ADDRESS").lower()
            if value != f"dns:///{service}{HEADLESS}:{PORTS[service]}":
                yield f"{name} is not every ready replica of {service}"


@rule(
    OVERLAY.only(LOCAL, MULTI),
    bad(5433, "spec.ports[0].port", POSTGRES, "TALLY_ORDER_DATABASE_URL of order-runtime"),
    bad("pg", "metadata.name", POSTGRES, "TALLY_ORDER_OWNER_DATABASE_URL of order-owner"),
    removed("Service/redis", "TALLY_REDIS_URL of coupon-runtime"),
    bad("database", f"spec.selector[{LABEL}component]", "Service/redis", "no redis server"),
)
def secrets_name_services(whole: Item) -> Iterator[str]:
    """The Secrets are made by a program, for the overlays with servers of their own."""
    for secret, data in SECRETS.items():
        for key, text in data.items():
            for url in map(urlsplit, _ADDRESS.findall(text)):
                host, port = url.hostname or "", port_of(url)
                found = whole.overlay.find("Service", host)
                if found is None or not serves(whole.overlay, host, port):
                    yield f"{key} of {secret}: {host}:{port} is no Service and port"
                elif found.get(f"spec.selector[{LABEL}component]") != COMPONENTS.get(url.scheme):
                    yield f"{key} of {secret}: {host} is no {url.scheme} server"


def gateway_url(url: str, overlay: str) -> Control:
    path = "data.TALLY_PAYMENT_GATEWAY_URL"
    return bad(url, path, "ConfigMap/payment-settings*", "Deployment/payment", overlay)


@rule(
    named("Deployment/payment"),
    gateway_url("http://api.tosspayments.com:443", PRODUCTION),
    gateway_url("https://gateway", PRODUCTION),
    gateway_url("https://api.tosspayments.com:8443", PRODUCTION),
    gateway_url("http://gateway:8080", LOCAL),
)
def the_gateway_is_called_over_tls(each: Item) -> Iterator[str]:
    """With the merchant's key, on the port that the policy opens. `local` calls the simulator."""
    url = urlsplit(each.setting("gateway_url"))
    host, port = url.hostname or "", port_of(url)
    if each.overlay.name != PRODUCTION:
        if not serves(each.overlay, host, port):
            yield f"{url.geturl()} is no Service and port of the overlay"
        return
    if url.scheme != "https":
        yield f"sends the merchant's key over {url.scheme}"
    if "." not in host or each.overlay.find("Service", host):
        yield "its gateway is inside the cluster"
    if (each.service, PUBLIC, f"TCP {port}") not in calls_allowed(each.overlay):
        yield f"no policy opens port {port}"
