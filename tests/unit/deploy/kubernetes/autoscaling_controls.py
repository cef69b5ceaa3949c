"""What breaks the rules about autoscalers, one thing wrong at a time."""

from __future__ import annotations

from typing import Final

from tests.unit.deploy.kubernetes.breaking import Control, at, container, without

_SCALER: Final = ("HorizontalPodAutoscaler", "order", "spec")
_MEASURED: Final = (*_SCALER, "metrics", 0, "containerResource")

CONTROLS: Final = [
    Control(
        "scaling_is_in_one_hand",
        "sets its own replicas",
        at("Deployment", "order", "spec", "replicas", value=3),
    ),
    Control(
        "scaling_is_in_one_hand",
        "least and most",
        at("HorizontalPodAutoscaler", "order", "spec", "minReplicas", value=2),
    ),
    Control(
        "scaling_is_in_one_hand",
        "scaleDown is as it likes",
        at("HorizontalPodAutoscaler", "order", "spec", "behavior", "scaleDown", gone=True),
    ),
    Control(
        "scaling_is_in_one_hand",
        "does not exist",
        at("HorizontalPodAutoscaler", "order", "spec", "scaleTargetRef", "name", value="orders"),
    ),
    Control(
        "scaling_is_in_one_hand",
        "Deployment/order: is not scaled",
        without("HorizontalPodAutoscaler", "order"),
    ),
    Control(
        "scaling_is_in_one_hand",
        "container app",
        at(
            *("HorizontalPodAutoscaler", "order", "spec", "metrics", 0),
            *("containerResource", "container"),
            value="app",
        ),
    ),
    Control(
        "scaling_is_in_one_hand",
        "scaleUp is as it likes",
        at(*_SCALER, "behavior", "scaleUp", gone=True),
    ),
    Control(
        "scaling_is_in_one_hand",
        "scaleDown is as it likes",
        at(*_SCALER, "behavior", "scaleDown", "stabilizationWindowSeconds", gone=True),
    ),
    Control(
        "scaling_is_in_one_hand",
        "no Deployment/order of the version",
        at(*_SCALER, "scaleTargetRef", "apiVersion", value="apps/v1beta1"),
    ),
    Control(
        "scaling_is_in_one_hand",
        "does not look at one container's processor alone",
        at(*_SCALER, "metrics", gone=True),
    ),
    Control(
        "scaling_is_in_one_hand",
        "does not look at one container's processor alone",
        at(*_MEASURED, "name", value="memory"),
    ),
    Control(
        "scaling_is_in_one_hand",
        "scales at 7000 %",
        at(*_MEASURED, "target", "averageUtilization", value=7000),
    ),
    Control(
        "scaling_is_in_one_hand",
        "scales at 7 %",
        at(*_MEASURED, "target", "averageUtilization", value=7),
    ),
    Control(
        "scaling_is_in_one_hand",
        "counts in parts of a cpu that nobody asks for",
        container("order", "resources", "requests", "cpu", gone=True),
    ),
]
