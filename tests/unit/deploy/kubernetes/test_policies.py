"""Every rule holds for every overlay, and every check of a rule can fail, as its controls show."""

from __future__ import annotations

import pytest

from deploy.kubernetes.manifests import OVERLAYS
from tests.unit.deploy.kubernetes.engine import Check, Control, controls_of
from tests.unit.deploy.kubernetes.manifests import LOCAL, MULTI, PRODUCTION, Overlay, load
from tests.unit.deploy.kubernetes.rules import RULES


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("name", RULES)
def test_rule(name: str, overlay: str) -> None:
    assert RULES[name].faults(load(overlay)) == []


@pytest.mark.parametrize(("name", "check", "control"), controls_of(RULES), ids=str)
def test_control(name: str, check: Check, control: Control) -> None:
    """One change, before which the rule holds, makes the check report the object."""
    names = (control.overlay,) if control.overlay else (PRODUCTION, LOCAL, MULTI)
    says, faults = RULES[name].broken_by(control, check, map(load, names))
    assert any(says in fault for fault in faults), faults


def test_an_overlay_without_objects_breaks_a_rule() -> None:
    """Most rules hold for it; this one must not."""
    assert RULES["every_service_has_a_server_and_a_migration_of_the_release"].faults(
        Overlay(PRODUCTION, [])
    )
