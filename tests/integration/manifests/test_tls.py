"""The component `tls`, run as local processes, with the certificates that cert-manager makes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest

from common.tls import AUTHORITIES, CERTIFICATE, KEY
from deploy.kubernetes.secrets import secret_objects
from deploy.local.plan import Backends
from tally.order.v1 import order_pb2 as pb
from tally_client import Certificates, Tally, TallyError
from tests.support.balances import charge
from tests.support.certificates import Authority
from tests.support.cluster import Changes, Cluster
from tests.support.cluster.manifest import Object
from tests.support.orders import create_order, create_product, pay
from tests.support.time_limits import LONG_S
from tests.unit.deploy.kubernetes.components import CERTIFICATES, with_component
from tests.unit.deploy.kubernetes.manifests import MULTI

SMALL = Changes(replicas=dict.fromkeys(("balance", "coupon", "order", "payment"), 1))

pytestmark = pytest.mark.timeout(300)


def secrets_with(authorities: dict[str, Authority], backends: Backends) -> Sequence[Object]:
    """The Secrets of the overlay, and those of the component's Certificates."""
    made = list(secret_objects(backends))
    for spec in CERTIFICATES.values():
        authority = authorities[spec["issuerRef"]["name"]]
        certificate, key = authority.sign(*spec["dnsNames"], uris=spec.get("uris", ()))
        made.append(
            {
                "kind": "Secret",
                "metadata": {"name": spec["secretName"], "namespace": "tally"},
                "stringData": {CERTIFICATE: certificate, KEY: key, AUTHORITIES: authority.pem},
            }
        )
    return made


async def test_an_order_is_paid_over_tls_by_the_names_of_the_services(tmp_path: Path) -> None:
    """Probes pass in plaintext, clients and services call each other over TLS."""
    authorities = {"tally-clients": Authority(), "tally-peers": Authority()}
    overlay = with_component(MULTI, "tls", tmp_path / "sources")
    file = tmp_path / AUTHORITIES
    file.write_text(authorities["tally-clients"].pem)
    async with Cluster.start(
        overlay.objects,
        tmp_path / "pods",
        SMALL,
        lambda backends: secrets_with(authorities, backends),
    ) as cluster:
        targets: Any = {name: cluster.target(name) for name in ("balance", "order")}
        async with Tally(**targets, certificates=Certificates(ca_file=file)) as tally:
            await tally.balance.charge_balance(charge("ada", 10_000, "c"))
            product = (await tally.product.create_product(create_product("p", 5))).product
            made = await tally.order.create_order(create_order("ada", {product.product_id: 2}, "o"))
            paid = await tally.order.pay_order(pay(made.order, balance=200), timeout_s=LONG_S)
            assert paid.order.state == pb.Order.STATE_PAID
        async with Tally(**targets) as plain:
            with pytest.raises(TallyError) as caught:
                await plain.balance.charge_balance(charge("ada", 1, "d"), timeout_s=2.0)
        assert caught.value.code in {
            grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.DEADLINE_EXCEEDED,
        }
