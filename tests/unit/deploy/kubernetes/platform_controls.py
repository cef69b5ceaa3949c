"""What breaks the rules about what the cluster is told, one thing wrong at a time."""

from __future__ import annotations

from typing import Final

from tests.unit.deploy.kubernetes.breaking import MULTI, Control, at

CONTROLS: Final = [
    Control(
        "config_maps_of_pods_cannot_change",
        "ConfigMap/payment-settings",
        at("ConfigMap", "payment-settings*", "immutable", gone=True),
    ),
    Control(
        "config_maps_of_pods_cannot_change",
        "ConfigMap/tally-settings",
        at("ConfigMap", "tally-settings*", "immutable", value=False),
        overlay=MULTI,
    ),
]
