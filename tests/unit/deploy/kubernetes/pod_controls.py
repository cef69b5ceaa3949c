"""What breaks the rules about pods, one thing wrong at a time."""

from __future__ import annotations

from typing import Final

from tests.unit.deploy.kubernetes.breaking import (
    LOCAL,
    MULTI,
    Control,
    at,
    container,
    pod,
    variable,
    without,
)

_SPREAD: Final = ("Deployment", "order", "topologySpreadConstraints")
_TERM: Final = (
    "affinity",
    "podAntiAffinity",
    "preferredDuringSchedulingIgnoredDuringExecution",
    0,
    "podAffinityTerm",
)

CONTROLS: Final = [
    Control(
        "every_service_has_its_server",
        "server",
        without("Deployment", "coupon"),
    ),
    Control(
        "every_service_has_its_server",
        "migration",
        without("Job", "coupon-migrate-*"),
    ),
    Control(
        "ports_are_those_bound",
        "TALLY_BIND",
        variable("order", "TALLY_BIND", "127.0.0.1:50053"),
    ),
    Control(
        "ports_are_those_bound",
        "TALLY_METRICS_PORT",
        variable("order", "TALLY_METRICS_PORT", "9000"),
    ),
    Control(
        "ports_are_those_bound",
        "its ports are",
        container("order", "ports", 0, "containerPort", value=50051),
    ),
    Control(
        "resources_are_asked_for",
        "no cpu",
        container("order", "resources", "requests", "cpu", gone=True),
    ),
    Control(
        "resources_are_asked_for",
        "StatefulSet/postgres: has no limit",
        pod("StatefulSet", "postgres", "containers", 0, "resources", "limits", gone=True),
        overlay=LOCAL,
    ),
    Control(
        "test_replicas_are_those_of_the_requirement",
        "four replicas",
        at("Deployment", "order", "spec", "replicas", value=2),
        overlay=MULTI,
    ),
    Control(
        "test_replicas_are_those_of_the_requirement",
        "half a processor",
        container("order", "resources", "limits", "memory", value="1Gi"),
        overlay=MULTI,
    ),
    Control(
        "pods_have_no_privileges",
        "may gain privileges",
        container("order", "securityContext", "allowPrivilegeEscalation", gone=True),
    ),
    Control(
        "pods_have_no_privileges",
        "keeps capabilities",
        container("order", "securityContext", "capabilities", "add", value=["NET_RAW"]),
    ),
    Control(
        "pods_have_no_privileges",
        "may write",
        container("order", "securityContext", "readOnlyRootFilesystem", value=False),
    ),
    Control(
        "pods_have_no_privileges",
        "may run as root",
        pod("StatefulSet", "postgres", "securityContext", "runAsNonRoot", gone=True),
        overlay=LOCAL,
    ),
    Control(
        "pods_have_no_privileges",
        "seccomp",
        pod("Job", "order-migrate-*", "securityContext", "seccompProfile", gone=True),
    ),
    Control(
        "pods_have_no_privileges",
        "hostNetwork",
        pod("Deployment", "order", "hostNetwork", value=True),
    ),
    Control(
        "user_is_the_image_s",
        "Deployment/order",
        pod("Deployment", "order", "securityContext", "runAsUser", value=1000),
    ),
    Control(
        "tmp_is_writable_and_bounded",
        "Deployment/order",
        pod("Deployment", "order", "volumes", 0, "emptyDir", value={}),
    ),
    Control(
        "identities_are_their_own",
        "does not exist",
        without("ServiceAccount", "order"),
    ),
    Control(
        "identities_are_their_own",
        "mounts a token",
        pod("Deployment", "order", "automountServiceAccountToken", value=True),
    ),
    Control(
        "identities_are_their_own",
        "hands out tokens",
        at("ServiceAccount", "order", "automountServiceAccountToken", gone=True),
    ),
    Control(
        "identities_are_their_own",
        "shares its ServiceAccount",
        pod("Deployment", "order", "serviceAccountName", value="balance"),
    ),
    Control(
        "replicas_are_spread",
        "topology.kubernetes.io/zone",
        pod("Deployment", "order", "topologySpreadConstraints", 0, gone=True),
    ),
    Control(
        "replicas_are_spread",
        "kubernetes.io/hostname",
        pod(
            *("Deployment", "order", "topologySpreadConstraints", 1, "labelSelector"),
            value={"matchLabels": {"app.kubernetes.io/name": "orders"}},
        ),
    ),
    Control(
        "replicas_are_spread",
        "anti-affinity",
        pod("Deployment", "order", "affinity", gone=True),
    ),
    Control(
        "replicas_are_spread",
        "Deployment/order: rather waits than runs in a crowded topology.kubernetes.io/zone",
        pod(*_SPREAD, 0, "whenUnsatisfiable", value="DoNotSchedule"),
    ),
    Control(
        "replicas_are_spread",
        "Deployment/order: rather waits than runs in a crowded kubernetes.io/hostname",
        pod(*_SPREAD, 1, "whenUnsatisfiable", value="DoNotSchedule"),
        overlay=MULTI,
    ),
    Control(
        "replicas_are_spread",
        "Deployment/order: is spread around the pods that it replaces",
        pod(*_SPREAD, 0, "matchLabelKeys", gone=True),
    ),
    Control(
        "replicas_are_spread",
        "Deployment/order: rather waits than runs beside another replica",
        pod(
            *("Deployment", "order", "affinity", "podAntiAffinity"),
            value={
                "requiredDuringSchedulingIgnoredDuringExecution": [
                    {
                        "topologyKey": "kubernetes.io/hostname",
                        "labelSelector": {"matchLabels": {"app.kubernetes.io/name": "order"}},
                    }
                ]
            },
        ),
    ),
    Control(
        "spreading_is_each_service_s_own",
        "Deployment/order",
        pod(
            *("Deployment", "order", *_TERM, "labelSelector"),
            value={"matchLabels": {"app.kubernetes.io/component": "server"}},
        ),
    ),
    Control(
        "there_is_time_to_end",
        "is killed before",
        pod("Deployment", "order", "terminationGracePeriodSeconds", value=30),
    ),
    Control(
        "there_is_time_to_end",
        "does not sleep",
        container("order", "lifecycle", gone=True),
    ),
    Control(
        "there_is_time_to_end",
        "is killed before",
        variable("order", "TALLY_GRACE_S", "120"),
        overlay=LOCAL,
    ),
    # 5 + 3 + 21 + 5 + 3 + 21 + 3 + 2 + 2 and the margin: too long by the second grace alone.
    Control(
        "there_is_time_to_end",
        "Deployment/order: is killed before the 70 s",
        variable("order", "TALLY_ORDER_GRACE_S", "21"),
    ),
    Control(
        "ports_are_those_bound",
        "Deployment/order: TALLY_BIND",
        variable("order", "TALLY_ORDER_BIND", "0.0.0.0:50063"),
    ),
    Control(
        "labels_are_complete",
        "Service/order",
        at("Service", "order", "metadata", "labels", "app.kubernetes.io/part-of", gone=True),
    ),
    Control(
        "labels_are_complete",
        "its instance",
        at("Service", "order", "metadata", "labels", "app.kubernetes.io/instance", value="local"),
    ),
    Control(
        "labels_are_complete",
        "does not select its own",
        at("Deployment", "order", "spec", "selector", "matchLabels", value={"app": "order"}),
    ),
]
