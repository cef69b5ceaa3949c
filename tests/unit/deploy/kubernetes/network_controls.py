"""What breaks the rules about who reaches whom, one thing wrong at a time."""

from __future__ import annotations

from typing import Final

from tests.unit.deploy.kubernetes.breaking import (
    LOCAL,
    Control,
    at,
    policy,
    variable,
    with_one_more,
    without,
)

_ANYBODY: Final[dict[str, object]] = {"podSelector": {}}

CONTROLS: Final = [
    Control(
        "services_select_something",
        "Service/order: selects 0",
        at("Service", "order", "spec", "selector", value={"app": "order"}),
    ),
    Control(
        "services_select_something",
        "Service/order: selects 2",
        at("Service", "order", "spec", "selector", value={"app.kubernetes.io/name": "order"}),
    ),
    Control(
        "services_select_something",
        "no port 'http'",
        at("Service", "order", "spec", "ports", 0, "targetPort", value="http"),
    ),
    Control(
        "servers_have_both_services",
        "order-headless: does not exist",
        without("Service", "order-headless"),
    ),
    Control(
        "servers_have_both_services",
        "is not headless",
        at("Service", "order-headless", "spec", "clusterIP", gone=True),
    ),
    Control(
        "servers_have_both_services",
        "not ready",
        at("Service", "order-headless", "spec", "publishNotReadyAddresses", value=True),
    ),
    Control(
        "servers_have_both_services",
        "speaks gRPC",
        at("Service", "order", "spec", "ports", 0, "appProtocol", gone=True),
    ),
    Control(
        "servers_have_both_services",
        "StatefulSet/postgres",
        at("StatefulSet", "postgres", "spec", "serviceName", value="pg"),
        overlay=LOCAL,
    ),
    Control(
        "addresses_are_services",
        "TALLY_ORDER_COUPON_ADDRESS",
        variable("order", "TALLY_ORDER_COUPON_ADDRESS", "dns:///coupon:50052"),
    ),
    Control(
        "addresses_are_services",
        "TALLY_PAYMENT_GATEWAY_URL",
        variable("payment", "TALLY_PAYMENT_GATEWAY_URL", "http://gateway:8080"),
        overlay=LOCAL,
    ),
    Control(
        "policies_allow_the_calls_of_the_code_and_no_others",
        "order may not call coupon on 50052",
        without("NetworkPolicy", "order-to-coupon"),
    ),
    Control(
        "policies_allow_the_calls_of_the_code_and_no_others",
        "order may not call payment on 50054",
        without("NetworkPolicy", "payment-from-order"),
    ),
    Control(
        "policies_allow_the_calls_of_the_code_and_no_others",
        "payment may not call gateway on 443",
        without("NetworkPolicy", "payment-to-gateway"),
    ),
    Control(
        "policies_allow_the_calls_of_the_code_and_no_others",
        "coupon may call private on 22",
        with_one_more(
            policy("wide", podSelector={}, egress=[{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}])
        ),
    ),
    Control(
        "policies_allow_the_calls_of_the_code_and_no_others",
        "stranger may call postgres on 5432",
        with_one_more(
            policy("wide", podSelector={}, egress=[{"to": [_ANYBODY]}], ingress=[{}]),
        ),
        overlay=LOCAL,
    ),
    Control(
        "policies_allow_the_calls_of_the_code_and_no_others",
        "gateway may call balance migration on 22",
        without("NetworkPolicy", "default-deny"),
        overlay=LOCAL,
    ),
    Control(
        "everything_is_denied_by_default",
        "NetworkPolicy",
        at("NetworkPolicy", "default-deny", "spec", "policyTypes", value=["Ingress"]),
    ),
    Control(
        "metrics_are_for_prometheus",
        "cannot be read",
        without("NetworkPolicy", "servers-from-prometheus"),
    ),
    Control(
        "metrics_are_for_prometheus",
        "by anybody",
        at(
            *("NetworkPolicy", "servers-from-prometheus", "spec", "ingress", 0, "from", 0),
            value=_ANYBODY,
        ),
    ),
]
