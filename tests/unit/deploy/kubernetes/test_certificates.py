"""Certificates of the components that make them: all that are mounted, for the right names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import pytest

from tests.unit.deploy.kubernetes.components import (
    CERTIFICATES,
    changed,
    faults,
    source,
    with_component,
)
from tests.unit.deploy.kubernetes.manifests import (
    LOCAL,
    PEER_PORTS,
    PRODUCTION,
    SERVICES,
    Overlay,
    load,
)

EXTERNAL: Final = {
    each["metadata"]["name"]: each["spec"]
    for each in source("tls-external-secrets", "secrets.yaml")
}


def mounted_certificates(overlay: Overlay) -> set[str]:
    """The Secrets with certificates that pods mount."""
    names = [
        name
        for each in overlay.workloads
        for name in each.values("pod.volumes[*].secret.secretName")
    ]
    return {name for name in names if name and name.endswith("tls")}


@pytest.mark.parametrize("component", ["tls-cert-manager", "tls-external-secrets"])
def test_rules_hold_with_what_makes_certificates(component: str, tmp_path: Path) -> None:
    """The schemas of Kubernetes do not have these kinds."""
    overlay = with_component(PRODUCTION, component, tmp_path)
    assert faults(overlay) == {}
    assert {each["kind"] for each in changed(overlay)} <= {
        "Certificate",
        "Issuer",
        "ExternalSecret",
    }


def test_each_mounted_certificate_is_made(audited: Overlay) -> None:
    mounted = mounted_certificates(audited)
    if audited.name == LOCAL:
        assert mounted == set()
        return
    assert mounted == CERTIFICATES.keys() == EXTERNAL.keys()
    for name, spec in CERTIFICATES.items():
        assert spec["secretName"] == name
    for name, spec in EXTERNAL.items():
        assert spec["target"]["name"] == name
        assert {each["secretKey"] for each in spec["data"]} == {"tls.crt", "tls.key", "ca.crt"}


def test_certificates_are_for_the_names_by_which_services_are_called() -> None:
    order = load(PRODUCTION).the("Deployment/order")
    for peer in PEER_PORTS:
        host = order.setting(f"{peer}_address").removeprefix("dns:///").partition(":")[0]
        assert host in CERTIFICATES[f"{peer}-peer-tls"]["dnsNames"]
    for service in SERVICES:
        names = CERTIFICATES[f"{service}-tls"]["dnsNames"]
        assert {service, f"{service}.tally", f"{service}-headless.tally"} <= {*names}


def test_certificates_of_peers_name_the_services_that_the_settings_know() -> None:
    overlay = load(PRODUCTION)
    known = json.loads(overlay.the("Deployment/balance").setting("peer_services"))
    made = {
        uri: name.removesuffix("-peer-tls")
        for name, spec in CERTIFICATES.items()
        for uri in spec.get("uris", [])
    }
    assert known.items() <= made.items()
    assert set(known.values()) == {overlay.the("Deployment/order").setting("auth_saga_service")}
    for name, spec in CERTIFICATES.items():
        mutual = name.endswith("-peer-tls")
        assert ("client auth" in spec["usages"]) == mutual
        assert spec["issuerRef"]["name"] == ("tally-peers" if mutual else "tally-clients")
    issuers = {
        each["metadata"]["name"]
        for each in source("tls-cert-manager", "issuers.yaml")
        if each["kind"] == "Issuer"
    }
    assert {spec["issuerRef"]["name"] for spec in CERTIFICATES.values()} <= issuers


def test_certificates_are_renewed_before_the_alert_about_their_end() -> None:
    """TallyCertificateExpires begins 14 days before, for what cert-manager makes."""
    days = {
        name: int(spec["renewBefore"].removesuffix("h")) / 24 for name, spec in CERTIFICATES.items()
    }
    assert {name for name, before in days.items() if before <= 14} == set()
