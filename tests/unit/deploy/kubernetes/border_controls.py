"""What breaks the rules about the namespace's border, one thing wrong at a time."""

from __future__ import annotations

from typing import Final

from tests.unit.deploy.kubernetes.breaking import (
    LOCAL,
    Control,
    at,
    policy,
    with_one_more,
    without,
)

_FROM: Final = ("spec", "ingress", 0, "from")
_ANY_NAMESPACE: Final[dict[str, object]] = {"namespaceSelector": {}}

CONTROLS: Final = [
    Control(
        "only_clients_and_monitoring_get_in",
        "stranger elsewhere may call balance on 50051",
        at("NetworkPolicy", "balance-from-clients", *_FROM, 1, value=_ANY_NAMESPACE),
    ),
    Control(
        "only_clients_and_monitoring_get_in",
        "client elsewhere may call balance on 50051",
        at(
            *("NetworkPolicy", "balance-from-clients", *_FROM, 0, "namespaceSelector"),
            value={},
        ),
    ),
    Control(
        "only_clients_and_monitoring_get_in",
        "a namespace of clients may not call balance on 50051",
        at("NetworkPolicy", "balance-from-clients", *_FROM, 1, gone=True),
    ),
    Control(
        "only_clients_and_monitoring_get_in",
        "an address of nobody may call order on 9464",
        at(
            *("NetworkPolicy", "servers-from-prometheus", *_FROM, 0),
            value={"ipBlock": {"cidr": "0.0.0.0/0"}},
        ),
    ),
    Control(
        "only_clients_and_monitoring_get_in",
        "the cluster's own may call postgres on 5432",
        with_one_more(policy("wide", podSelector={}, ingress=[{"from": [_ANY_NAMESPACE]}])),
        overlay=LOCAL,
    ),
    Control(
        "nobody_gets_out_into_other_namespaces",
        "order may call stranger elsewhere on 443",
        with_one_more(policy("wide", podSelector={}, egress=[{"to": [_ANY_NAMESPACE]}])),
    ),
    Control(
        "nobody_gets_out_into_other_namespaces",
        "coupon may call the cluster's own on 53",
        at(
            *("NetworkPolicy", "callers-to-dns", "spec", "egress", 0, "to", 0, "podSelector"),
            gone=True,
        ),
    ),
    Control(
        "nobody_gets_out_into_other_namespaces",
        "stranger may call balance elsewhere on 50051",
        without("NetworkPolicy", "default-deny"),
    ),
]
