"""Rules about the namespace's border: who gets in from elsewhere, and who gets out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from tests.unit.deploy.kubernetes.manifests import METRICS_PORT, PORTS, Overlay
from tests.unit.deploy.kubernetes.network_rules import (
    CLIENT,
    DNS_PORT,
    FAR,
    LISTENING,
    RESOLVER,
    SYSTEM,
    Labels,
    Other,
    allowed,
    parties,
)
from tests.unit.deploy.kubernetes.rule import rule

ELSEWHERE: Final = {"kubernetes.io/metadata.name": "elsewhere"}
MONITORING: Final = {"kubernetes.io/metadata.name": "monitoring"}


def _outsiders(everyone: dict[str, Labels]) -> dict[str, Other]:
    """Who is not of the namespace. A label on a pod elsewhere lets nobody in: anyone sets it."""
    found = {
        f"{name} elsewhere": Other(labels, None, ELSEWHERE) for name, labels in everyone.items()
    }
    return found | {
        "a namespace of clients": Other({}, None, ELSEWHERE | CLIENT),
        "monitoring": Other({}, None, MONITORING),
        "the cluster's own": Other({}, None, SYSTEM),
        "an address of a node's network": Other(address="10.1.2.3"),
        "an address of nobody": Other(address=FAR),
    }


@rule
def only_clients_and_monitoring_get_in(overlay: Overlay) -> Iterator[str]:
    everyone = parties(overlay)
    servers = {each.service for each in overlay.servers}
    for outsider, other in _outsiders(everyone).items():
        for whom, labels in everyone.items():
            for port in LISTENING:
                # Nothing listens in a pod that is not the overlay's.
                if whom in ("stranger", "client"):
                    continue
                needed = whom in servers and (outsider, port) in (
                    ("a namespace of clients", PORTS[whom]),
                    ("monitoring", METRICS_PORT),
                )
                found = allowed(overlay, "ingress", labels, other, port=port)
                if found is not needed:
                    told = "may" if found else "may not"
                    yield f"NetworkPolicy: {outsider} {told} call {whom} on {port}"


@rule
def nobody_gets_out_into_other_namespaces(overlay: Overlay) -> Iterator[str]:
    """But for names, which are asked of the cluster's own servers."""
    everyone = parties(overlay)
    others = _outsiders(everyone) | {"the resolver": RESOLVER}
    for who, labels in everyone.items():
        for whom, other in others.items():
            for port in (*LISTENING, DNS_PORT):
                if other.address or (whom, port) == ("the resolver", DNS_PORT):
                    continue
                if allowed(overlay, "egress", labels, other, port=port):
                    yield f"NetworkPolicy: {who} may call {whom} on {port}"
