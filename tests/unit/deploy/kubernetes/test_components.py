"""Each component, added to an overlay as the guide says: every rule holds as before."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final
from unittest import mock

import pytest
import yaml
from sqlalchemy.engine import make_url

from common import tracing
from common.environment import SECRETS_DIR, unknown_names
from common.settings import read
from deploy.audit.errors import CannotAudit
from deploy.audit.settings import AuditSettings
from deploy.audit.sources import urls_of_settings
from deploy.kubernetes import manifests, prometheus_rule, validation
from deploy.kubernetes.manifests import OVERLAYS
from deploy.local.plan import PROJECT
from deploy.monitoring import grafana
from deploy.monitoring.views import VIEWS
from tests.unit.deploy.kubernetes.components import (
    CERTIFICATES,
    changed,
    components_of,
    faults,
    kustomization,
    with_component,
    with_components,
)
from tests.unit.deploy.kubernetes.manifests import (
    LABEL,
    LOCAL,
    METRICS_PORT,
    PROBE_PORT,
    PRODUCTION,
    SERVICES,
    Overlay,
    load,
    selects,
)
from tests.unit.deploy.kubernetes.network_rules import MONITORING, OTLP_PORT, PRIVATE, calls_allowed
from tests.unit.deploy.kubernetes.rules import RULES
from tests.unit.deploy.kubernetes.setting_rules import SECRETS, secret_values

CERTIFICATE: Final = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
SAMPLED: Final = {
    "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector.monitoring:4317",
    "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
    "OTEL_TRACES_SAMPLER_ARG": "0.25",
    "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=production",
    "OTEL_EXPORTER_OTLP_TIMEOUT": "5",
    "OTEL_BSP_MAX_QUEUE_SIZE": "4096",
}


@pytest.fixture(scope="module", params=OVERLAYS)
def traced(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Overlay:
    return with_component(request.param, "tracing", tmp_path_factory.mktemp("traced"))


@pytest.fixture(scope="module")
def verifying(tmp_path_factory: pytest.TempPathFactory) -> Overlay:
    directory = tmp_path_factory.mktemp("verifying")
    return with_component(PRODUCTION, "postgres-ca", directory, ca_crt=CERTIFICATE)


@pytest.fixture(scope="module")
def monitored(tmp_path_factory: pytest.TempPathFactory) -> Overlay:
    return with_component(PRODUCTION, "prometheus", tmp_path_factory.mktemp("monitored"))


@pytest.fixture(scope="module")
def pausable(tmp_path_factory: pytest.TempPathFactory) -> Overlay:
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
    for key, value in secret_values(audited, secret).items():
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


def test_the_audit_of_production_verifies_its_databases(audited: Overlay, tmp_path: Path) -> None:
    """The Secret is that of a trial, without TLS."""
    audit = audited.the("Deployment/audit")
    for key, value in SECRETS["audit"].items():
        (tmp_path / key).write_text(value, encoding="utf-8")
    environment = audit.environment | {SECRETS_DIR: str(tmp_path)}
    with mock.patch.dict(os.environ, environment, clear=True):
        if audited.name != PRODUCTION:
            assert len(urls_of_settings()) == 4
            return
        with pytest.raises(CannotAudit, match="BALANCE_AUDIT_DATABASE_URL: must end in"):
            urls_of_settings()


def test_the_audits_page_has_tls_where_the_servers_have(audited: Overlay) -> None:
    audit = audited.the("Deployment/audit")
    https = audited.has_tls
    for probe in ("startup", "readiness", "liveness"):
        scheme = audit.get(f"container.{probe}Probe.httpGet.scheme")
        assert scheme == ("HTTPS" if https else None)
    assert ("TALLY_AUDIT_TLS_DIR" in audit.environment) == https


def test_nodes_may_call_the_ports_of_probes_and_no_other(tmp_path: Path) -> None:
    names = ("audit", "probes-from-nodes")
    added = [f"../../components/{name}" for name in names]
    overlay = with_components(PRODUCTION, added + components_of(PRODUCTION), tmp_path, {})
    opened = {edge for edge in calls_allowed(overlay) if edge[0] == PRIVATE}
    probed = {(PRIVATE, service, f"TCP {PROBE_PORT}") for service in SERVICES}
    assert opened == probed | {(PRIVATE, "audit", f"TCP {METRICS_PORT}")}
    assert validation.problems(changed(overlay)) == []


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
    files = {"postgres-ca": {"ca_crt": CERTIFICATE}}
    overlay = with_components(PRODUCTION, every_component_of_production(), tmp_path, files)
    assert faults(overlay) == {}
    audit = overlay.the("Deployment/audit")
    server = overlay.the("Deployment/order")
    for each in (audit, server):
        assert each.labels[f"{LABEL}version"]
        assert "PGSSLROOTCERT" in each.environment


def test_control_components_after_tls_break_a_rule(tmp_path: Path) -> None:
    last = [f"../../components/{name}" for name in ("audit", "prometheus")]
    overlay = with_components(PRODUCTION, components_of(PRODUCTION) + last, tmp_path, {})
    found = faults(overlay)["components_that_tls_changes_stand_before_it"]
    assert [fault.rpartition(" ")[2] for fault in found] == ["PodMonitor/tally", "Deployment/audit"]


# ---- dashboards


def test_rules_and_schemas_hold_with_a_config_map_for_each_dashboard(tmp_path: Path) -> None:
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
