"""The component ``tracing``, taken into an overlay as the guide says: the rules hold as before."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final
from unittest import mock

import pytest
import yaml

from common import tracing
from deploy.kubernetes import manifests, validation
from deploy.kubernetes.manifests import OVERLAYS
from tests.unit.deploy.kubernetes import test_policies
from tests.unit.deploy.kubernetes.border_rules import ELSEWHERE, MONITORING
from tests.unit.deploy.kubernetes.components import needs_kubectl, with_component
from tests.unit.deploy.kubernetes.manifests import Overlay
from tests.unit.deploy.kubernetes.network_rules import FAR, Other, allowed, parties
from tests.unit.deploy.kubernetes.rule import RULES

PORT: Final = 4317
COLLECTOR: Final = Other({"app": "collector"}, namespace=MONITORING)

assert test_policies.CONTROLS  # what registers the rules
pytestmark = needs_kubectl


@pytest.fixture(scope="module", params=OVERLAYS)
def traced(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Overlay:
    """The overlay with one line more in its kustomization."""
    return with_component(request.param, "tracing", tmp_path_factory.mktemp("traced"))


@pytest.mark.parametrize("name", RULES)
def test_every_rule_holds_with_it(name: str, traced: Overlay) -> None:
    assert list(RULES[name](traced)) == []


def test_kubernetes_would_take_it(traced: Overlay) -> None:
    assert validation.problems(traced.objects) == []


def test_each_server_is_told_where_the_collector_is_and_takes_it(traced: Overlay) -> None:
    assert len(traced.servers) == 4
    for each in traced.servers:
        with mock.patch.dict(os.environ, traced.environment(each.containers[0]), clear=True):
            assert tracing.wanted(), each.told
    for each in traced.migrations:
        assert not traced.environment(each.containers[0]).keys() & {*tracing.ENDPOINTS}


def test_servers_reach_the_collector_and_nobody_else_does(traced: Overlay) -> None:
    servers = {each.service for each in traced.servers}
    for who, labels in parties(traced).items():
        found = allowed(traced, "egress", labels, COLLECTOR, port=PORT)
        assert found is (who in servers), who


def test_they_reach_nothing_else_by_it(traced: Overlay) -> None:
    elsewhere = Other({"app": "collector"}, namespace=ELSEWHERE)
    for each in traced.servers:
        assert not allowed(traced, "egress", each.labels, COLLECTOR, port=PORT + 1)
        for other in (elsewhere, Other(address=FAR), Other({"app": "collector"})):
            assert not allowed(traced, "egress", each.labels, other, port=PORT)


SAMPLED: Final = {
    "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
    "OTEL_TRACES_SAMPLER_ARG": "0.25",
    "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=production",
    "OTEL_EXPORTER_OTLP_TIMEOUT": "5",
    "OTEL_BSP_MAX_QUEUE_SIZE": "4096",
}


def told_more(directory: Path, given: dict[str, str]) -> Overlay:
    """Production with the component, and these lines more in its endpoint.yaml."""
    file = manifests.DIRECTORY / "components" / "tracing" / "endpoint.yaml"
    patch = yaml.safe_load(file.read_text(encoding="utf-8"))
    [server] = patch["spec"]["template"]["spec"]["containers"]
    server["env"] += [{"name": name, "value": value} for name, value in given.items()]
    return with_component("production", "tracing", directory, endpoint_yaml=yaml.safe_dump(patch))


def test_a_sampler_and_the_like_are_lines_in_it(tmp_path: Path) -> None:
    overlay = told_more(tmp_path, SAMPLED)
    for each in overlay.servers:
        assert SAMPLED.items() <= overlay.environment(each.containers[0]).items()
    assert [told for rule in RULES.values() for told in rule(overlay)] == []


def test_a_key_is_none_and_neither_is_a_ratio_of_25(tmp_path: Path) -> None:
    key, ratio = "OTEL_EXPORTER_OTLP_HEADERS", "OTEL_TRACES_SAMPLER_ARG"
    overlay = told_more(tmp_path, {**SAMPLED, ratio: "25", key: "api-key=x"})
    found = list(RULES["variables_are_settings"](overlay))
    assert len(found) == 4
    assert all(key in told for told in found)
    found = list(RULES["settings_are_accepted"](overlay))
    assert len(found) == 4
    assert all(ratio in told for told in found)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_without_it_nobody_is_traced(overlay: str) -> None:
    text = Path(manifests.rendered(overlay)).read_text(encoding="utf-8")
    assert "OTEL_" not in text
    assert str(PORT) not in text
