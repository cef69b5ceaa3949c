"""The component ``postgres-ca``, taken in as the guide says: the rules hold as before."""

from __future__ import annotations

from typing import Final

import pytest

from deploy.kubernetes import manifests, validation
from deploy.kubernetes.manifests import OVERLAYS
from tests.unit.deploy.kubernetes import test_policies
from tests.unit.deploy.kubernetes.components import needs_kubectl, with_component
from tests.unit.deploy.kubernetes.manifests import Overlay
from tests.unit.deploy.kubernetes.rule import RULES

CERTIFICATE: Final = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
VARIABLE: Final = "PGSSLROOTCERT"

assert test_policies.CONTROLS  # what registers the rules
pytestmark = needs_kubectl


@pytest.fixture(scope="module")
def verifying(tmp_path_factory: pytest.TempPathFactory) -> Overlay:
    directory = tmp_path_factory.mktemp("verifying")
    return with_component("production", "postgres-ca", directory, ca_crt=CERTIFICATE)


@pytest.mark.parametrize("name", RULES)
def test_every_rule_holds_with_it(name: str, verifying: Overlay) -> None:
    """Among them that the file which the driver is told of is mounted."""
    assert list(RULES[name](verifying)) == []


def test_kubernetes_would_take_it(verifying: Overlay) -> None:
    assert validation.problems(verifying.objects) == []


def test_everybody_who_knows_the_database_is_told_of_the_certificate(verifying: Overlay) -> None:
    assert verifying.the("ConfigMap", "postgres-ca-*")["data"] == {"ca.crt": CERTIFICATE}
    told = verifying.servers + verifying.migrations
    assert len(told) == 8
    for each in told:
        assert VARIABLE in verifying.environment(each.containers[0]), each.told


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_without_it_nobody_is(overlay: str) -> None:
    assert VARIABLE not in manifests.rendered(overlay).read_text(encoding="utf-8")
