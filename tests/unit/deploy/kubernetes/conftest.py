"""The overlays with the audit, which several modules read."""

from __future__ import annotations

import pytest

from tests.unit.deploy.kubernetes.components import with_component
from tests.unit.deploy.kubernetes.manifests import LOCAL, PRODUCTION, Overlay


@pytest.fixture(scope="module", params=[LOCAL, PRODUCTION])
def audited(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Overlay:
    return with_component(request.param, "audit", tmp_path_factory.mktemp("audited"))
