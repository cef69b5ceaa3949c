"""What breaks the rules about names, one thing wrong at a time."""

from __future__ import annotations

from typing import Any, Final

from tests.unit.deploy.kubernetes.breaking import (
    LOCAL,
    Broken,
    Control,
    at,
    policy,
    with_one_more,
    without,
)

_EGRESS: Final = ("NetworkPolicy", "callers-to-dns", "spec", "egress", 0)
_ANYWHERE: Final[dict[str, Any]] = {"ipBlock": {"cidr": "0.0.0.0/0"}}


def _also_out(**port: Any) -> Broken:
    """One more way out for everybody, to anywhere."""
    way = {"to": [_ANYWHERE], "ports": [port]} if port else {"to": [_ANYWHERE]}
    return with_one_more(policy("wide", podSelector={}, egress=[way]))


CONTROLS: Final = [
    Control(
        "callers_may_ask_for_names",
        "by UDP",
        at("NetworkPolicy", "callers-to-dns", "spec", "egress", 0, "ports", 0, gone=True),
    ),
    Control(
        "callers_may_ask_for_names",
        "to anybody",
        at("NetworkPolicy", "callers-to-dns", "spec", "egress", 0, "to", gone=True),
    ),
    Control(
        "callers_may_ask_for_names",
        "client: may not look names up by TCP",
        without("NetworkPolicy", "clients-to-dns"),
    ),
    Control(
        "callers_may_ask_for_names",
        "client: may not look names up by UDP",
        at("NetworkPolicy", "clients-to-dns", "spec", "egress", value=[]),
        overlay=LOCAL,
    ),
    Control(
        "only_questions_are_datagrams",
        "NetworkPolicy/wide: lets UDP out on 4444",
        _also_out(protocol="UDP", port=4444),
    ),
    Control(
        "only_questions_are_datagrams",
        "NetworkPolicy/wide: lets UDP out on 50",
        _also_out(protocol="UDP", port=50, endPort=60),
    ),
    Control(
        "only_questions_are_datagrams",
        "NetworkPolicy/wide: lets SCTP out on every port",
        _also_out(protocol="SCTP"),
    ),
    Control(
        "only_questions_are_datagrams",
        "NetworkPolicy/wide: lets every protocol out on every port",
        _also_out(),
    ),
    Control(
        "only_questions_are_datagrams",
        "NetworkPolicy/wide: takes all of 0.0.0.0/0",
        _also_out(protocol="TCP", port=53),
    ),
    Control(
        "only_questions_are_datagrams",
        "NetworkPolicy/callers-to-dns: takes all of 0.0.0.0/0",
        at(*_EGRESS, "to", gone=True),
    ),
    Control(
        "only_questions_are_datagrams",
        "NetworkPolicy/callers-to-dns: takes every pod of a namespace",
        at(*_EGRESS, "to", 0, "podSelector", value={}),
    ),
    Control(
        "only_questions_are_datagrams",
        "NetworkPolicy/callers-to-dns: takes pods of ours",
        at(*_EGRESS, "to", 0, "namespaceSelector", gone=True),
        overlay=LOCAL,
    ),
]
