"""Every rule holds for every overlay; and every rule can fail, which its controls show."""

from __future__ import annotations

import pytest

from deploy.kubernetes.manifests import OVERLAYS
from tests.unit.deploy.kubernetes import (
    address_controls,
    address_rules,
    autoscaling_controls,
    autoscaling_rules,
    border_controls,
    border_rules,
    dns_controls,
    dns_rules,
    migration_controls,
    migration_rules,
    mount_controls,
    mount_rules,
    network_controls,
    network_rules,
    platform_controls,
    platform_rules,
    pod_controls,
    pod_rules,
    probe_controls,
    probe_rules,
    scale_controls,
    scale_rules,
    setting_controls,
    setting_rules,
)
from tests.unit.deploy.kubernetes.breaking import Control
from tests.unit.deploy.kubernetes.manifests import load
from tests.unit.deploy.kubernetes.rule import RULES

# Importing a module of rules is what registers them.
RULE_MODULES = (
    address_rules,
    autoscaling_rules,
    border_rules,
    dns_rules,
    migration_rules,
    mount_rules,
    network_rules,
    platform_rules,
    pod_rules,
    probe_rules,
    scale_rules,
    setting_rules,
)
assert all(RULE_MODULES)
CONTROLS = [
    *address_controls.CONTROLS,
    *autoscaling_controls.CONTROLS,
    *border_controls.CONTROLS,
    *dns_controls.CONTROLS,
    *pod_controls.CONTROLS,
    *probe_controls.CONTROLS,
    *scale_controls.CONTROLS,
    *setting_controls.CONTROLS,
    *network_controls.CONTROLS,
    *platform_controls.CONTROLS,
    *migration_controls.CONTROLS,
    *mount_controls.CONTROLS,
]


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("name", RULES)
def test_rule(name: str, overlay: str) -> None:
    assert list(RULES[name](load(overlay))) == []


@pytest.mark.parametrize("control", CONTROLS, ids=lambda control: control.told)
def test_control(control: Control) -> None:
    """The rule holds until one thing is broken, and then names the object."""
    overlay = load(control.overlay)
    assert list(RULES[control.rule](overlay)) == []
    control.broken(overlay)
    faults = list(RULES[control.rule](overlay))
    assert any(control.named in fault for fault in faults), faults


def test_every_rule_has_a_control() -> None:
    assert {control.rule for control in CONTROLS} == RULES.keys()


def test_an_empty_overlay_is_refused() -> None:
    overlay = load("production")
    overlay.objects.clear()
    assert list(RULES["every_service_has_its_server"](overlay))
