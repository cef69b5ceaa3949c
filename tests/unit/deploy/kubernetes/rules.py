"""Every rule by its name, from the modules of rules."""

from __future__ import annotations

from typing import Final

from tests.unit.deploy.kubernetes import (
    file_rules,
    network_rules,
    pod_rules,
    scale_rules,
    service_rules,
    setting_rules,
)
from tests.unit.deploy.kubernetes.engine import Rule

MODULES: Final = (
    pod_rules,
    scale_rules,
    setting_rules,
    file_rules,
    service_rules,
    network_rules,
)
RULES: Final[dict[str, Rule]] = {
    name: found
    for module in MODULES
    for name, found in vars(module).items()
    if isinstance(found, Rule)
}
