"""What breaks the rules about probes, one thing wrong at a time."""

from __future__ import annotations

from typing import Final

from tests.unit.deploy.kubernetes.breaking import LOCAL, MULTI, Control, container, pod

CONTROLS: Final = [
    Control(
        "probes_of_servers_are_grpc",
        "no gRPC readinessProbe",
        container("order", "readinessProbe", value={"tcpSocket": {"port": 50053}}),
    ),
    Control(
        "probes_of_servers_are_grpc",
        "livenessProbe asks for ''",
        container("order", "livenessProbe", "grpc", "service", value=""),
    ),
    Control(
        "probes_of_servers_are_grpc",
        "asks port 50051",
        container("order", "livenessProbe", "grpc", "port", value=50051),
    ),
    Control(
        "probes_have_ports_that_exist",
        "Deployment/order",
        container("order", "livenessProbe", "grpc", "port", value="grpc"),
        overlay=MULTI,
    ),
    Control(
        "probes_have_ports_that_exist",
        "StatefulSet/redis",
        pod("StatefulSet", "redis", "containers", 0, "startupProbe", gone=True),
        overlay=LOCAL,
    ),
    Control(
        "probes_have_patience",
        "readinessProbe",
        container("order", "readinessProbe", "timeoutSeconds", gone=True),
    ),
    Control(
        "probes_have_patience",
        "to start",
        container("order", "startupProbe", "failureThreshold", value=3),
    ),
    Control(
        "probes_act_in_time",
        "Deployment/order: livenessProbe acts after 20 s",
        container("order", "livenessProbe", "failureThreshold", value=2),
    ),
    Control(
        "probes_act_in_time",
        "Deployment/order: livenessProbe acts after 600 s",
        container("order", "livenessProbe", "periodSeconds", value=100),
    ),
    Control(
        "probes_act_in_time",
        "Deployment/order: readinessProbe acts after 30 s",
        container("order", "readinessProbe", "failureThreshold", value=6),
    ),
    Control(
        "probes_act_in_time",
        "Deployment/order: readinessProbe acts after 2 s",
        container("order", "readinessProbe", "periodSeconds", value=1),
        overlay=MULTI,
    ),
    Control(
        "probes_act_in_time",
        "StatefulSet/postgres: readinessProbe acts at the first failure",
        pod(
            *("StatefulSet", "postgres", "containers", 0, "readinessProbe", "failureThreshold"),
            value=1,
        ),
        overlay=LOCAL,
    ),
    Control(
        "probes_act_in_time",
        "Deployment/order: livenessProbe waits into its next turn",
        container("order", "livenessProbe", "timeoutSeconds", value=15),
    ),
    Control(
        "probes_act_in_time",
        "Deployment/order: readinessProbe is late",
        container("order", "readinessProbe", "initialDelaySeconds", value=60),
    ),
]
