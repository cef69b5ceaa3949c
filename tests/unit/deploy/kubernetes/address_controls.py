"""What breaks the rules about addresses, one thing wrong at a time."""

from __future__ import annotations

from typing import Final

from tests.unit.deploy.kubernetes.breaking import LOCAL, MULTI, Broken, Control, at, without

_ELSEWHERE: Final = "10.1.2.3"


def _gateway(url: str) -> Broken:
    return at("ConfigMap", "payment-settings*", "data", "TALLY_PAYMENT_GATEWAY_URL", value=url)


CONTROLS: Final = [
    Control(
        "services_are_for_the_cluster_alone",
        "Service/order: is a LoadBalancer",
        at("Service", "order", "spec", "type", value="LoadBalancer"),
    ),
    Control(
        "services_are_for_the_cluster_alone",
        "Service/gateway: is a NodePort",
        at("Service", "gateway", "spec", "type", value="NodePort"),
        overlay=LOCAL,
    ),
    Control(
        "services_are_for_the_cluster_alone",
        "Service/order: has a port of every node",
        at("Service", "order", "spec", "ports", 0, "nodePort", value=30053),
    ),
    Control(
        "services_are_for_the_cluster_alone",
        "Service/postgres: has externalIPs",
        at("Service", "postgres", "spec", "externalIPs", value=[_ELSEWHERE]),
        overlay=MULTI,
    ),
    Control(
        "services_are_for_the_cluster_alone",
        "Service/order: keeps a client with one replica",
        at("Service", "order", "spec", "sessionAffinity", value="ClientIP"),
    ),
    Control(
        "secrets_name_services",
        "Secret/order-runtime: TALLY_ORDER_DATABASE_URL names postgres:5432",
        at("Service", "postgres", "spec", "ports", 0, "port", value=5433),
        overlay=LOCAL,
    ),
    Control(
        "secrets_name_services",
        "Secret/order-owner: TALLY_ORDER_OWNER_DATABASE_URL names postgres:5432",
        at("Service", "postgres", "metadata", "name", value="postgresql"),
        overlay=MULTI,
    ),
    Control(
        "secrets_name_services",
        "Secret/coupon-runtime: TALLY_REDIS_URL names redis:6379",
        without("Service", "redis"),
        overlay=LOCAL,
    ),
    Control(
        "secrets_name_services",
        "TALLY_REDIS_URL names redis, which is no redis server",
        at(
            *("Service", "redis", "spec", "selector"),
            value={"app.kubernetes.io/component": "database"},
        ),
        overlay=LOCAL,
    ),
    Control(
        "the_real_gateway_is_asked_over_tls",
        "Deployment/payment: sends the merchant's key over http",
        _gateway("http://api.tosspayments.com:443"),
    ),
    Control(
        "the_real_gateway_is_asked_over_tls",
        "Deployment/payment: its gateway is on port 8443",
        _gateway("https://api.tosspayments.com:8443"),
    ),
    Control(
        "the_real_gateway_is_asked_over_tls",
        "Deployment/payment: its gateway gateway is inside the cluster",
        _gateway("https://gateway"),
    ),
]
