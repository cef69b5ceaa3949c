"""Whom the certificate of a connection names."""

from __future__ import annotations

import math

import pytest

from common.identity.caller import Caller, Kind
from common.identity.errors import NotPermitted
from common.identity.peers import PeerCertificates

ORDER = "spiffe://example.org/ns/tally/sa/order"
TILL = "spiffe://example.org/ns/tally/sa/till"
PEERS = PeerCertificates({ORDER: "order", TILL: "till"}, "order")
CERTIFICATE = {"x509_pem_cert": [b"PEM"], "x509_common_name": [ORDER.encode()]}


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        (ORDER, Caller(Kind.SERVICE, "order", math.inf, runs_sagas=True)),
        (TILL, Caller(Kind.SERVICE, "till", math.inf)),
    ],
)
def test_the_uri_names_the_service(uri: str, expected: Caller) -> None:
    properties = {**CERTIFICATE, "peer_spiffe_id": [uri.encode()]}
    assert PEERS.caller_of(properties) == expected


def test_a_connection_without_a_certificate_names_nobody() -> None:
    """Whatever else the client has said, such as the name of the server that it wants."""
    assert PEERS.caller_of({"ssl_requested_server_name": [ORDER.encode()]}) is None


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"peer_spiffe_id": [b""]},
        {"peer_spiffe_id": [b"spiffe://example.org/ns/tally/sa/Order"]},
        {"peer_spiffe_id": [f"{ORDER}/".encode()]},
        {"peer_spiffe_id": [b"\xff"]},
        {"peer_uri": [ORDER.encode(), TILL.encode()]},
        {"x509_subject_alternative_name": [ORDER.encode()]},
    ],
)
def test_a_certificate_that_names_no_known_service_is_refused(more: dict[str, list[bytes]]) -> None:
    """The common name, and a URI beside others, name nobody."""
    with pytest.raises(NotPermitted):
        PEERS.caller_of({**CERTIFICATE, **more})
