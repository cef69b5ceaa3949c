"""Each component, added to an overlay as the guide says: every rule holds as before."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Final
from unittest import mock

import pytest
import yaml
from sqlalchemy.engine import make_url

from common import tracing
from common.environment import SECRETS_DIR, unknown_names
from common.settings import read
from deploy.audit.settings import AuditSettings
from deploy.audit.sources import urls_of_settings
from deploy.kubernetes import manifests, prometheus_rule, rendering, validation
from deploy.kubernetes.manifests import OVERLAYS
from deploy.local.plan import PROJECT
from deploy.monitoring import grafana
from deploy.monitoring.views import VIEWS
from tests.unit.deploy.kubernetes.manifests import (
    LABEL,
    LOCAL,
    METRICS_PORT,
    PEER_PORTS,
    PROBE_PORT,
    PRODUCTION,
    SERVICES,
    Object,
    Overlay,
    load,
    parse,
    selects,
)
from tests.unit.deploy.kubernetes.network_rules import MONITORING, OTLP_PORT, PRIVATE, calls_allowed
from tests.unit.deploy.kubernetes.rules import RULES
from tests.unit.deploy.kubernetes.setting_rules import SECRETS

KUBECTL: Final = rendering.kubectl()
CERTIFICATE: Final = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
SAMPLED: Final = {
    "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector.monitoring:4317",
    "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
    "OTEL_TRACES_SAMPLER_ARG": "0.25",
    "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=production",
    "OTEL_EXPORTER_OTLP_TIMEOUT": "5",
    "OTEL_BSP_MAX_QUEUE_SIZE": "4096",
}


def with_component(overlay: str, component: str, directory: Path, **files: str) -> Overlay:
    """An overlay with a component, the first one, rendered from a copy.

    ``files`` are added to the component.
    """
    own = components_of(overlay)
    return with_components(
        overlay, [f"../../components/{component}", *own], directory, {component: files}
    )


def components_of(overlay: str) -> list[str]:
    content = yaml.safe_load(kustomization(overlay).read_text(encoding="utf-8"))
    return list(content.get("components", []))


def kustomization(overlay: str) -> Path:
    return manifests.DIRECTORY / "overlays" / overlay / "kustomization.yaml"


def with_components(
    overlay: str, components: list[str], directory: Path, files: dict[str, dict[str, str]]
) -> Overlay:
    """An overlay with these components in place of its own; ``files`` are added to them."""
    copy = directory / "kubernetes"
    sources = shutil.ignore_patterns("rendered", "__pycache__", "*.py")
    shutil.copytree(manifests.DIRECTORY, copy, ignore=sources)
    shutil.copytree(grafana.DIRECTORY, directory / "monitoring" / "dashboards")
    for component, texts in files.items():
        for name, text in texts.items():
            (copy / "components" / component / name.replace("_", ".")).write_text(text)
    file = copy / "overlays" / overlay / "kustomization.yaml"
    content = yaml.safe_load(file.read_text(encoding="utf-8")) | {"components": components}
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifests, "DIRECTORY", copy)
        return parse(overlay, rendering.render(str(KUBECTL), overlay))


def faults(overlay: Overlay) -> dict[str, list[str]]:
    """The faults by rule, of the rules that do not hold."""
    found = {name: rule.faults(overlay) for name, rule in RULES.items()}
    return {name: of_rule for name, of_rule in found.items() if of_rule}


def changed(overlay: Overlay) -> list[Object]:
    """What the component adds and changes; `make check` validates the rest, which takes seconds."""
    committed = load(overlay.name).objects
    objects = [each for each in overlay.objects if each not in committed]
    assert objects
    return objects


@pytest.fixture(scope="module", params=OVERLAYS)
def traced(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Overlay:
    if KUBECTL is None:
        pytest.skip("kubectl is not installed")
    return with_component(request.param, "tracing", tmp_path_factory.mktemp("traced"))


@pytest.fixture(scope="module")
def verifying(tmp_path_factory: pytest.TempPathFactory) -> Overlay:
    if KUBECTL is None:
        pytest.skip("kubectl is not installed")
    directory = tmp_path_factory.mktemp("verifying")
    return with_component(PRODUCTION, "postgres-ca", directory, ca_crt=CERTIFICATE)


@pytest.fixture(scope="module")
def monitored(tmp_path_factory: pytest.TempPathFactory) -> Overlay:
    if KUBECTL is None:
        pytest.skip("kubectl is not installed")
    return with_component(PRODUCTION, "prometheus", tmp_path_factory.mktemp("monitored"))


@pytest.fixture(scope="module", params=[LOCAL, PRODUCTION])
def audited(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Overlay:
    if KUBECTL is None:
        pytest.skip("kubectl is not installed")
    return with_component(request.param, "audit", tmp_path_factory.mktemp("audited"))


@pytest.fixture(scope="module")
def pausable(tmp_path_factory: pytest.TempPathFactory) -> Overlay:
    if KUBECTL is None:
        pytest.skip("kubectl is not installed")
    return with_component(LOCAL, "pausing", tmp_path_factory.mktemp("pausable"))


# ---- pausing


def test_rules_and_schemas_hold_with_pausing(pausable: Overlay) -> None:
    assert faults(pausable) == {}
    assert validation.problems(changed(pausable)) == []


def servers_read_the_paused_methods(overlay: Overlay) -> None:
    """From a whole directory, and though the ConfigMap does not exist: nothing is paused then."""
    assert len(overlay.servers) == 4
    for each in overlay.servers:
        file = Path(each.environment["TALLY_PAUSE_FILE"])
        [mount] = [
            one
            for one in each.values("container.volumeMounts[*]")
            if one["mountPath"] == str(file.parent)
        ]
        assert "subPath" not in mount
        source = each.get("pod.volumes[paused-methods].configMap")
        assert source == {"name": "paused-methods", "optional": True}
    # An `apply` of the overlay would begin or end a pause.
    assert not overlay.find("ConfigMap", "paused-methods")


def test_every_server_reads_the_paused_methods_from_a_directory(pausable: Overlay) -> None:
    servers_read_the_paused_methods(pausable)


def test_methods_can_be_paused_in_production_without_a_rollout() -> None:
    servers_read_the_paused_methods(load(PRODUCTION))


# ---- tracing


def test_rules_and_schemas_hold_with_tracing(traced: Overlay) -> None:
    assert faults(traced) == {}
    assert validation.problems(changed(traced)) == []


def test_each_server_has_an_endpoint_that_tracing_accepts(traced: Overlay) -> None:
    assert len(traced.servers) == 4
    for each in traced.servers:
        with mock.patch.dict(os.environ, each.environment, clear=True):
            assert tracing.wanted(), each.title
    for each in traced.migrations:
        assert not each.environment.keys() & {*tracing.ENDPOINTS}


def test_tracing_opens_the_collector_to_servers_and_nothing_else(traced: Overlay) -> None:
    opened = calls_allowed(traced) - calls_allowed(load(traced.name))
    collector = (MONITORING, f"TCP {OTLP_PORT}")
    assert opened == {(each.service, *collector) for each in traced.servers}


def test_a_sampler_is_accepted_and_a_wrong_endpoint_is_not() -> None:
    overlay, rule = load(PRODUCTION), RULES["settings_are_known_and_accepted"]
    for name, value in SAMPLED.items():
        overlay.change("Deployment/order", f"env[{name}].value", value)
    assert rule.faults(overlay) == []
    endpoint = "OTEL_EXPORTER_OTLP_ENDPOINT"
    overlay.change("Deployment/order", f"env[{endpoint}].value", "localhost:4317")
    [fault] = rule.faults(overlay)
    assert endpoint in fault


# ---- postgres-ca


def test_rules_and_schemas_hold_with_a_certificate(verifying: Overlay) -> None:
    """One of the rules: the file of the driver's variable is mounted."""
    assert faults(verifying) == {}
    assert validation.problems(changed(verifying)) == []


def test_every_client_of_postgres_has_the_certificate(verifying: Overlay) -> None:
    assert verifying.the("ConfigMap/postgres-ca-*").get("data") == {"ca.crt": CERTIFICATE}
    clients = verifying.servers + verifying.migrations
    assert len(clients) == 8
    for each in clients:
        assert "PGSSLROOTCERT" in each.environment, each.title


# ---- prometheus


def test_rules_of_the_manifests_hold_with_the_operator_s_objects(monitored: Overlay) -> None:
    """The schemas of Kubernetes do not have these kinds; promtool checks the rules."""
    assert faults(monitored) == {}
    assert [each["kind"] for each in changed(monitored)] == ["PodMonitor", "PrometheusRule"]


def test_every_server_is_scraped_once_with_the_labels_of_the_rules(monitored: Overlay) -> None:
    spec = monitored.the("PodMonitor/tally").raw["spec"]
    [endpoint] = spec["podMetricsEndpoints"]
    assert endpoint["scheme"] == "https"
    assert all(
        endpoint["tlsConfig"]["serverName"] in spec["dnsNames"]
        for name, spec in CERTIFICATES.items()
        if not name.endswith("-peer-tls")
    )
    scraped = [each for each in monitored.workloads if selects(spec["selector"], each.labels)]
    with_port = [each.name for each in scraped if endpoint["port"] in each.ports]
    assert with_port == [each.name for each in monitored.servers]
    assert [one["targetLabel"] for one in endpoint["relabelings"]] == ["job", "service", "instance"]


def test_the_rules_of_the_operator_are_those_of_the_files(monitored: Overlay) -> None:
    groups = [
        group
        for file in sorted(prometheus_rule.RULES.glob("*.yaml"))
        for group in yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]
    ]
    assert monitored.the("PrometheusRule/tally").get("spec.groups") == groups
    assert prometheus_rule.drift() == []


# ---- audit


def test_rules_and_schemas_hold_with_the_audit(audited: Overlay) -> None:
    assert faults(audited) == {}
    assert validation.problems(changed(audited)) == []


def test_the_audit_is_one_pod_of_the_release(audited: Overlay) -> None:
    audit = audited.the("Deployment/audit")
    assert audit.get("spec.replicas") == 1
    assert audit.get("spec.strategy.type") == "Recreate"
    server = audited.the("Deployment/order")
    for path in ("container.image", f"spec.template.metadata.labels[{LABEL}version]"):
        assert audit.values(path) == server.values(path)


def test_the_audit_is_scraped_with_the_servers(audited: Overlay) -> None:
    file = manifests.DIRECTORY / "components" / "prometheus" / "pod-monitor.yaml"
    spec = yaml.safe_load(file.read_text(encoding="utf-8"))["spec"]
    audit = audited.the("Deployment/audit")
    assert selects(spec["selector"], audit.labels)
    assert {each["port"] for each in spec["podMetricsEndpoints"]} <= {*audit.ports}


def test_the_audit_reads_its_settings_and_the_read_only_roles(
    audited: Overlay, tmp_path: Path
) -> None:
    audit = audited.the("Deployment/audit")
    secret = audit.get("pod.volumes[secrets].secret.secretName")
    for key, value in SECRETS[secret].items():
        (tmp_path / key).write_text(value, encoding="utf-8")
    environment = audit.environment | {SECRETS_DIR: str(tmp_path)}
    with mock.patch.dict(os.environ, environment, clear=True):
        settings = read(AuditSettings)
        assert unknown_names("audit", AuditSettings.model_fields) == []
        urls = urls_of_settings()
    assert settings.metrics_bind == "0.0.0.0:9464"
    mounted = audit.values("container.volumeMounts[*].mountPath")
    assert str(Path(settings.checkpoint).parent) in mounted
    assert {make_url(url).username for url in urls.values()} == {
        f"tally_{service}_audit" for service in SERVICES
    }


# ---- tls


def source(component: str, file: str) -> list[Object]:
    path = manifests.DIRECTORY / "components" / component / file
    return [each for each in yaml.safe_load_all(path.read_text(encoding="utf-8")) if each]


CERTIFICATES: Final = {
    each["metadata"]["name"]: each["spec"]
    for file in ("clients.yaml", "peers.yaml")
    for each in source("tls-cert-manager", file)
}
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
    if KUBECTL is None:
        pytest.skip("kubectl is not installed")
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


def test_the_audits_page_has_tls_where_the_servers_have(audited: Overlay) -> None:
    audit = audited.the("Deployment/audit")
    https = audited.has_tls
    for probe in ("startup", "readiness", "liveness"):
        scheme = audit.get(f"container.{probe}Probe.httpGet.scheme")
        assert scheme == ("HTTPS" if https else None)
    assert ("TALLY_AUDIT_TLS_DIR" in audit.environment) == https


def test_nodes_may_call_the_ports_of_probes_and_no_other(tmp_path: Path) -> None:
    if KUBECTL is None:
        pytest.skip("kubectl is not installed")
    names = ("audit", "probes-from-nodes")
    added = [f"../../components/{name}" for name in names]
    overlay = with_components(PRODUCTION, added + components_of(PRODUCTION), tmp_path, {})
    opened = {edge for edge in calls_allowed(overlay) if edge[0] == PRIVATE}
    probed = {(PRIVATE, service, f"TCP {PROBE_PORT}") for service in SERVICES}
    assert opened == probed | {(PRIVATE, "audit", f"TCP {METRICS_PORT}")}
    assert validation.problems(changed(overlay)) == []


def test_certificates_are_renewed_before_the_alert_about_their_end() -> None:
    """TallyCertificateExpires begins 14 days before, for what cert-manager makes."""
    days = {
        name: int(spec["renewBefore"].removesuffix("h")) / 24 for name, spec in CERTIFICATES.items()
    }
    assert {name for name, before in days.items() if before <= 14} == set()


# ---- several components


def every_component_of_production() -> list[str]:
    """Those of the overlay, with those that are in comments."""
    text = kustomization(PRODUCTION).read_text(encoding="utf-8")
    text = re.sub(r"^  # - (?=\.\./)", "  - ", text, flags=re.MULTILINE)
    return list(yaml.safe_load(text)["components"])


def test_the_guide_has_every_component_of_production_in_its_order() -> None:
    text = (PROJECT / "docs/guides/kubernetes.md").read_text(encoding="utf-8")
    section = text.split("\n### Components\n")[1]
    block = section.split("```yaml\n")[1].split("```")[0]
    assert yaml.safe_load(block)["components"] == every_component_of_production()


def test_rules_hold_with_every_component_of_production(tmp_path: Path) -> None:
    if KUBECTL is None:
        pytest.skip("kubectl is not installed")
    files = {"postgres-ca": {"ca_crt": CERTIFICATE}}
    overlay = with_components(PRODUCTION, every_component_of_production(), tmp_path, files)
    assert faults(overlay) == {}
    audit = overlay.the("Deployment/audit")
    server = overlay.the("Deployment/order")
    for each in (audit, server):
        assert each.labels[f"{LABEL}version"]
        assert "PGSSLROOTCERT" in each.environment


def test_control_components_after_tls_break_a_rule(tmp_path: Path) -> None:
    if KUBECTL is None:
        pytest.skip("kubectl is not installed")
    last = [f"../../components/{name}" for name in ("audit", "prometheus")]
    overlay = with_components(PRODUCTION, components_of(PRODUCTION) + last, tmp_path, {})
    found = faults(overlay)["components_that_tls_changes_stand_before_it"]
    assert [fault.rpartition(" ")[2] for fault in found] == ["PodMonitor/tally", "Deployment/audit"]


# ---- dashboards


def test_rules_and_schemas_hold_with_a_config_map_for_each_dashboard(tmp_path: Path) -> None:
    if KUBECTL is None:
        pytest.skip("kubectl is not installed")
    overlay = with_component(PRODUCTION, "dashboards", tmp_path)
    assert faults(overlay) == {}
    assert validation.problems(changed(overlay)) == []
    for view in VIEWS:
        found = overlay.the(f"ConfigMap/dashboard-{view.name}")
        assert found.get("data") == {f"{view.name}.json": grafana.content(view)}
        assert found.get("metadata.labels")["grafana_dashboard"] == "1"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_committed_overlays_have_no_component_but_pausing_in_production(overlay: str) -> None:
    text = manifests.rendered(overlay).read_text(encoding="utf-8")
    assert "OTEL_" not in text
    assert str(OTLP_PORT) not in text
    assert "PGSSLROOTCERT" not in text
    assert "monitoring.coreos.com" not in text
    assert "deploy.audit" not in text
    assert ("TALLY_PAUSE_FILE" in text) is (overlay == PRODUCTION)
