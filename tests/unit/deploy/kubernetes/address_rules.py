"""Rules about addresses: what Services are, and that what pods are told to call is there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

from tests.unit.deploy.kubernetes.manifests import LABEL, Overlay, told
from tests.unit.deploy.kubernetes.network_rules import OUTSIDE, Other, allowed
from tests.unit.deploy.kubernetes.rule import rule
from tests.unit.deploy.kubernetes.setting_rules import SECRETS

_PORTS: Final = {"postgresql": 5432, "redis": 6379, "http": 80, "https": 443}
_ADDRESS: Final = re.compile(r"\b[a-z]+://\S+")
_COMPONENTS: Final = {"postgresql": "database", "redis": "locks"}


@rule
def services_are_for_the_cluster_alone(overlay: Overlay) -> Iterator[str]:
    """Callers are not authenticated: what lets the world in is the platform's, and deliberate."""
    for each in overlay.of_kind("Service"):
        spec = each["spec"]
        if spec.get("type", "ClusterIP") != "ClusterIP":
            yield f"{told(each)}: is a {spec['type']}"
        for name in ("externalIPs", "loadBalancerIP", "externalName"):
            if spec.get(name):
                yield f"{told(each)}: has {name}"
        if any("nodePort" in port for port in spec["ports"]):
            yield f"{told(each)}: has a port of every node"
        if spec.get("sessionAffinity", "None") != "None":
            yield f"{told(each)}: keeps a client with one replica"


@rule
def secrets_name_services(overlay: Overlay) -> Iterator[str]:
    """The addresses in the Secrets that are made for the overlays with servers of their own."""
    if overlay.name == "production":
        return
    for secret, data in SECRETS.items():
        for key, text in data.items():
            for address in _ADDRESS.findall(text):
                yield from _not_there(overlay, f"Secret/{secret}: {key}", address)


def _not_there(overlay: Overlay, where: str, address: str) -> Iterator[str]:
    url = urlsplit(address)
    host, port = url.hostname or "", url.port or _PORTS.get(url.scheme, 0)
    found = overlay.find("Service", host)
    if found is None or port not in [one["port"] for one in found["spec"]["ports"]]:
        yield f"{where} names {host}:{port}, no Service and port of the overlay"
    elif found["spec"]["selector"].get(f"{LABEL}component") != _COMPONENTS.get(url.scheme):
        yield f"{where} names {host}, which is no {url.scheme} server"


@rule
def the_real_gateway_is_asked_over_tls(overlay: Overlay) -> Iterator[str]:
    """With the merchant's key, on the one port that the policy lets payment out on."""
    if overlay.name != "production":
        return
    for each in overlay.servers:
        if each.service != "payment":
            continue
        url = urlsplit(overlay.setting(each, "gateway_url"))
        port = url.port or _PORTS.get(url.scheme, 0)
        if url.scheme != "https":
            yield f"{each.told}: sends the merchant's key over {url.scheme}"
        if overlay.find("Service", url.hostname or "") or "." not in (url.hostname or ""):
            yield f"{each.told}: its gateway {url.hostname} is inside the cluster"
        gateway = Other(address=OUTSIDE["gateway"])
        if not allowed(overlay, "egress", each.labels, gateway, port=port):
            yield f"{each.told}: its gateway is on port {port}, where no policy lets it out"
