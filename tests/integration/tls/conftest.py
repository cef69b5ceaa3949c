"""All four services, with identity on and mutual TLS among them; clients are in plaintext."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deploy.local.identities import Identities, Issuer
from tests.support.certificates import HOST, ORDER, TILL, Authority, write_certificate
from tests.support.stack import stack, stack_databases

__all__ = ["stack", "stack_databases"]

SERVICES = ("balance", "coupon", "payment")


@dataclass(frozen=True)
class Mutual:
    """The ports of peers, and the certificates for them."""

    authority: Authority
    addresses: dict[str, str]
    folder: Path
    issuer: Issuer


@pytest.fixture(scope="module")
def redis_url() -> str:
    return ""


@pytest.fixture(scope="module")
def mutual(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mutual]:
    """Settings that are read meanwhile turn identity and the ports of peers on.

    The order service has a certificate and no token.
    """
    folder = tmp_path_factory.mktemp("mutual")
    made = Identities(folder)
    authority = Authority()
    own = write_certificate(folder / "own", authority, uris=[ORDER])
    addresses = {service: f"{HOST}:{_free_port()}" for service in SERVICES}
    environment = {
        **made.environment(),
        "TALLY_PEER_TLS_DIR": str(own),
        "TALLY_PEER_SERVICES": json.dumps({ORDER: "order", TILL: "till"}),
        **{f"TALLY_{name.upper()}_PEER_BIND": at for name, at in addresses.items()},
    }
    del environment["TALLY_ORDER_SERVICE_TOKEN_FILE"]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield Mutual(authority, addresses, folder, made.issuer)


@pytest.fixture(scope="module")
def stack_options(mutual: Mutual) -> dict[str, Any]:
    """One replica of the order service, which calls the ports of peers."""
    return {"orders": 1, **{f"{name}_address": at for name, at in mutual.addresses.items()}}


def _free_port() -> int:
    with socket.socket() as free:
        free.bind((HOST, 0))
        return int(free.getsockname()[1])
