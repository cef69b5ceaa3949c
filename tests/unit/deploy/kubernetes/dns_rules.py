"""Rules about names: whoever calls may ask for them, of the cluster's own servers alone."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

from tests.unit.deploy.kubernetes.manifests import Object, Overlay, told
from tests.unit.deploy.kubernetes.network_rules import (
    CLIENT,
    DNS_PORT,
    FAR,
    OURS,
    RESOLVER,
    Labels,
    Other,
    allowed,
)
from tests.unit.deploy.kubernetes.rule import rule


@rule
def callers_may_ask_for_names(overlay: Overlay) -> Iterator[str]:
    """DNS, by UDP and TCP, at the cluster's own servers and nobody else's."""
    callers = {each.told: each.labels for each in overlay.servers + overlay.migrations}
    for caller, labels in {**callers, "client": CLIENT}.items():
        for protocol in ("UDP", "TCP"):
            if not _may_ask(overlay, labels, RESOLVER, protocol):
                yield f"{caller}: may not look names up by {protocol}"
            if _may_ask(overlay, labels, Other(address=FAR), protocol):
                yield f"{caller}: may send what it likes as questions to anybody"


def _may_ask(overlay: Overlay, own: Labels, other: Other, protocol: str) -> bool:
    return allowed(overlay, "egress", own, other, port=DNS_PORT, protocol=protocol)


@rule
def only_questions_are_datagrams(overlay: Overlay) -> Iterator[str]:
    """What leaves by anything but TCP goes to port 53, and there to single servers."""
    for each in overlay.of_kind("NetworkPolicy"):
        for entry in each["spec"].get("egress") or []:
            yield from _of_entry(told(each), entry)


def _of_entry(where: str, entry: Object) -> Iterator[str]:
    ports = entry.get("ports") or [{"protocol": "every protocol"}]
    asked = [one for one in ports if _is_dns(one)]
    for one in ports:
        if one.get("protocol", "TCP") != "TCP" and one not in asked:
            yield f"{where}: lets {one['protocol']} out on {one.get('port', 'every port')}"
    if not asked:
        return
    for peer in entry.get("to") or [{"ipBlock": {"cidr": "0.0.0.0/0"}}]:
        block = peer.get("ipBlock", {}).get("cidr")
        if block is not None and ipaddress.ip_network(block).num_addresses > 1:
            yield f"{where}: takes all of {block} for servers of names"
        elif block is None and not peer.get("podSelector"):
            yield f"{where}: takes every pod of a namespace for a server of names"
        elif block is None and peer.get("namespaceSelector", {}).get("matchLabels") in (None, OURS):
            yield f"{where}: takes pods of ours, or anybody's, for servers of names"


def _is_dns(port: Object) -> bool:
    return port.get("port") == DNS_PORT and port.get("endPort", DNS_PORT) == DNS_PORT
