"""What breaks the rules about what pods are told and run, one thing wrong at a time."""

from __future__ import annotations

from typing import Final

from tests.unit.deploy.kubernetes.breaking import (
    LOCAL,
    Control,
    at,
    container,
    pod,
    secret,
    twice,
    variable,
    with_one_more,
    without,
)
from tests.unit.deploy.kubernetes.manifests import Workload

CONTROLS: Final = [
    Control(
        "variables_are_settings",
        "TALLY_POOL_SIZES",
        variable("order", "TALLY_POOL_SIZES", "8"),
    ),
    Control(
        "variables_are_settings",
        "Deployment/balance: TALLY_ORDER_PAY_WITHIN_S",
        variable("balance", "TALLY_ORDER_PAY_WITHIN_S", "8"),
        overlay=LOCAL,
    ),
    Control(
        "settings_are_accepted",
        "TALLY_POOL_SIZE",
        variable("order", "TALLY_POOL_SIZE", "eight"),
    ),
    Control(
        "settings_are_accepted",
        "TALLY_ORDER_DATABASE_URL",
        pod("Deployment", "order", "volumes", 1, "secret", "secretName", value="order-owner"),
    ),
    Control(
        "settings_are_accepted",
        "TALLY_SECRETS_DIR",
        variable("order", "TALLY_SECRETS_DIR", "/etc/tally/secret"),
    ),
    Control(
        "variables_are_given_once",
        "Deployment/order: TALLY_POOL_SIZE",
        variable("order", "TALLY_POOL_SIZE", "9"),
    ),
    Control(
        "variables_are_given_once",
        "Deployment/payment: TALLY_GRACE_S",
        at("ConfigMap", "payment-settings*", "data", "TALLY_GRACE_S", value="9"),
    ),
    Control(
        "secret_files_can_be_read_by_their_group_alone",
        "Deployment/order: the files of secrets",
        pod("Deployment", "order", "volumes", 1, "secret", "defaultMode", value=0o400),
    ),
    Control(
        "secret_files_can_be_read_by_their_group_alone",
        "StatefulSet/postgres: its fsGroup",
        pod("StatefulSet", "postgres", "securityContext", "fsGroup", value=70),
        overlay=LOCAL,
    ),
    Control(
        "secrets_are_files_of_those_who_need_them",
        "Deployment/order",
        pod("Deployment", "order", "volumes", 1, "secret", "secretName", value="order-owner"),
    ),
    Control(
        "secrets_are_not_in_manifests",
        "Secret/x",
        with_one_more(secret("x")),
    ),
    Control(
        "secrets_are_not_in_manifests",
        "takes its environment",
        container("order", "envFrom", 0, value={"secretRef": {"name": "order-runtime"}}),
    ),
    Control(
        "secrets_are_not_in_manifests",
        "comes from a Secret",
        container(
            *("order", "env", 0),
            value={"name": "X", "valueFrom": {"secretKeyRef": {"name": "x", "key": "y"}}},
        ),
    ),
    Control(
        "secrets_are_not_in_manifests",
        "TALLY_REDIS_URL is a secret",
        variable("order", "TALLY_REDIS_URL", "redis://redis:6379/0"),
        overlay=LOCAL,
    ),
    Control(
        "secrets_are_not_in_manifests",
        "looks like a credential",
        at("ConfigMap", "order-settings*", "data", "NOTE", value="postgresql://u:secret@h/d"),
    ),
    Control(
        "references_exist",
        "the Secret orders",
        pod("Deployment", "order", "volumes", 1, "secret", "secretName", value="orders"),
    ),
    Control(
        "references_exist",
        "the ConfigMap",
        without("ConfigMap", "order-settings*"),
    ),
    Control(
        "references_exist",
        "mount without a volume",
        pod("Deployment", "order", "volumes", 0, gone=True),
    ),
    Control(
        "references_exist",
        "the PriorityClass",
        without("PriorityClass", "*"),
    ),
    Control(
        "references_exist",
        "has no users.sql",
        lambda overlay: next(
            volume["secret"]["items"][0].update(key="users.sql")
            for volume in Workload(overlay.the("StatefulSet", "postgres")).pod["volumes"]
            if "secret" in volume
        ),
        overlay=LOCAL,
    ),
    Control(
        "config_maps_are_used",
        "ConfigMap/order-settings",
        container("order", "envFrom", 1, gone=True),
    ),
    Control(
        "images_are_pinned",
        "tally:latest",
        container("order", "image", value="registry.example.com/tally:latest"),
    ),
    Control(
        "images_are_pinned",
        "the image postgres",
        pod("StatefulSet", "postgres", "containers", 0, "image", value="postgres"),
        overlay=LOCAL,
    ),
    Control(
        "images_are_pinned",
        "cannot have changed",
        container("order", "imagePullPolicy", value="Always"),
    ),
    Control(
        "images_are_pinned",
        "runs tally-simulator",
        container("order", "image", value="tally-simulator:0.1.0"),
        overlay=LOCAL,
    ),
    Control(
        "versions_are_one",
        "several releases",
        container("order", "image", value="registry.example.com/tally:0.0.9"),
    ),
    Control(
        "commands_are_modules",
        "Deployment/order: does not run",
        container("order", "command", 2, value="orders_service"),
    ),
    Control(
        "commands_are_modules",
        "Job/order-migrate",
        pod("Job", "order-migrate-*", "containers", 0, "command", 3, gone=True),
    ),
    Control(
        "commands_are_modules",
        "no module deploy.gateway",
        container("gateway", "command", 2, value="deploy.gateway"),
        overlay=LOCAL,
    ),
    Control(
        "replicas_know_their_names",
        "Deployment/order",
        variable("order", "TALLY_REPLICA", "order"),
    ),
    Control(
        "namespace_is_tally",
        "Service/order",
        at("Service", "order", "metadata", "namespace", gone=True),
    ),
    Control(
        "namespace_is_tally",
        "Namespace/tally",
        without("Namespace", "tally"),
    ),
    Control(
        "names_are_unique",
        "Service/order",
        twice("Service", "order"),
    ),
]
