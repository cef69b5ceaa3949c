"""Rules about probes: what they ask, where, and how soon they act."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from tests.unit.deploy.kubernetes.manifests import PORTS, Overlay
from tests.unit.deploy.kubernetes.rule import rule

PROBES: Final = ("startupProbe", "readinessProbe", "livenessProbe")
PROBED_SERVICE: Final = {
    "startupProbe": "liveness",
    "readinessProbe": "",
    "livenessProbe": "liveness",
}
UNREADY_S: Final = (5, 15)
"""Sooner, and one slow answer takes a replica out of DNS; later, and clients meet it too long."""
RESTARTED_S: Final = (45, 90)
"""A restart mends little: sooner, and a busy node kills what still works; later, and what hangs
keeps its place too long."""


@rule
def probes_of_servers_are_grpc(overlay: Overlay) -> Iterator[str]:
    for each in overlay.servers:
        for name in PROBES:
            probe = each.containers[0].get(name, {}).get("grpc")
            if probe is None:
                yield f"{each.told}: no gRPC {name}"
            elif probe.get("service", "") != PROBED_SERVICE[name]:
                yield f"{each.told}: {name} asks for {probe.get('service')!r}"
            elif probe["port"] != PORTS[each.service]:
                yield f"{each.told}: {name} asks port {probe['port']}, not the service's"


@rule
def probes_have_ports_that_exist(overlay: Overlay) -> Iterator[str]:
    for each in overlay.lasting:
        for container in each.containers:
            declared = {port["containerPort"] for port in container.get("ports", [])}
            for name in PROBES:
                if name not in container:
                    yield f"{each.told}: no {name}"
                for how, probe in container.get(name, {}).items():
                    if how not in ("grpc", "tcpSocket", "httpGet"):
                        continue
                    if not isinstance(probe["port"], int) or probe["port"] not in declared:
                        yield f"{each.told}: {name} asks port {probe['port']}, which is not open"


@rule
def probes_have_patience(overlay: Overlay) -> Iterator[str]:
    for each in overlay.lasting:
        for name in PROBES:
            probe = each.containers[0].get(name, {})
            if probe and probe.get("timeoutSeconds", 1) <= 1:
                yield f"{each.told}: {name} waits no longer than a second"
        start = each.containers[0].get("startupProbe", {})
        if start.get("failureThreshold", 3) * start.get("periodSeconds", 10) < 30:
            yield f"{each.told}: gets less than 30 s to start"


@rule
def probes_act_in_time(overlay: Overlay) -> Iterator[str]:
    """Readiness within seconds and liveness after about a minute, neither at the first failure."""
    for each in overlay.lasting:
        for name, (least_s, most_s) in (
            ("readinessProbe", UNREADY_S),
            ("livenessProbe", RESTARTED_S),
        ):
            probe = each.containers[0].get(name, {})
            after_s = probe.get("periodSeconds", 10) * probe.get("failureThreshold", 3)
            if not least_s <= after_s <= most_s:
                yield f"{each.told}: {name} acts after {after_s} s, not {least_s} to {most_s}"
            if probe.get("failureThreshold", 3) < 2:
                yield f"{each.told}: {name} acts at the first failure"
            if probe.get("timeoutSeconds", 1) > probe.get("periodSeconds", 10):
                yield f"{each.told}: {name} waits into its next turn"
            if probe.get("initialDelaySeconds"):
                yield f"{each.told}: {name} is late though the startupProbe guards it"
