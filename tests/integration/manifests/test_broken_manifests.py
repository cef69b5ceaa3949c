"""Controls: running a manifest finds its error, and the message names the object."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deploy.kubernetes.secrets import secret_objects
from deploy.local.plan import Backends
from tests.support.cluster import OVERLAY, Changes, Cluster, ClusterError, ManifestError, load
from tests.support.cluster.manifest import Object
from tests.unit.deploy.kubernetes.manifests import MULTI, Overlay

SMALL = Changes(replicas={"balance": 1, "coupon": 1, "order": 1, "payment": 1})
ONLY_PAYMENT = Changes(replicas={**dict.fromkeys(("balance", "coupon", "order"), 0), "payment": 1})
FROM_NOWHERE = {"name": "TALLY_LOG_LEVEL", "valueFrom": {"fieldRef": {"fieldPath": "metadata.nom"}}}

pytestmark = pytest.mark.timeout(300)


def overlay() -> Overlay:
    return Overlay(MULTI, load(OVERLAY))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("Deployment/coupon", "container.readinessProbe.grpc.port", 50051),
            r"Deployment coupon: readinessProbe: port 50051 is none of the container's",
        ),
        (
            ("Service/payment-headless", "spec.selector[app.kubernetes.io/name]", "pay"),
            r"Service payment-headless: its selector .* selects no pod",
        ),
        (
            ("Deployment/order", "spec.selector.matchLabels.extra", "x"),
            r"Deployment order: its selector does not select its own pods",
        ),
        (
            ("Service/balance", "spec.ports[0].targetPort", "grcp"),
            r"Service balance: Deployment balance has no port grcp",
        ),
        (
            ("ConfigMap/tally-settings*", "data.TALLY_POOLSIZE", "8"),
            r"Deployment balance, container server: TALLY_POOLSIZE is no setting",
        ),
        (
            ("Deployment/order", "container.envFrom[0].configMapRef.name", "tally-setting"),
            r"Deployment order, .*: there is no ConfigMap tally-setting$",
        ),
        (
            ("ConfigMap/order-settings*", "data.TALLY_ORDER_COUPON_ADDRESS", "dns:///a:50052"),
            r"Deployment order, .*TALLY_ORDER_COUPON_ADDRESS names a:50052, and",
        ),
        (
            ("ConfigMap/payment-settings*", "data.TALLY_PAYMENT_GATEWAY_URL", "http://gateway:80"),
            r"Deployment payment, .*GATEWAY_URL names gateway:80; Service gateway has 50055",
        ),
        (
            ("Deployment/balance", "container.env[0]", FROM_NOWHERE),
            r"Deployment balance, .*env TALLY_LOG_LEVEL: a source that is not known",
        ),
        (
            ("Deployment/balance", "pod.volumes[secrets].secret.secretName", "balance-run"),
            r"Deployment balance, .*: there is no Secret balance-run$",
        ),
        (
            ("Deployment/payment", "container.command[2]", "payments_service"),
            r"Deployment payment, .*: there is no module payments_service",
        ),
        (("Service/balance", "kind", "Servise"), r"Servise balance: a kind that"),
    ],
)
async def test_a_wrong_field_is_named(
    tmp_path: Path, change: tuple[str, str, Any], message: str
) -> None:
    changed = overlay()
    changed.change(*change)
    with pytest.raises(ManifestError, match=message):
        async with Cluster.start(changed.objects, tmp_path, SMALL):
            pytest.fail("the cluster started")


async def test_a_container_that_ends_is_named_with_its_log(tmp_path: Path) -> None:
    def make_secrets(backends: Backends) -> list[Object]:
        made = secret_objects(backends)
        [payment] = [each for each in made if each["metadata"]["name"] == "payment-runtime"]
        del payment["stringData"]["TALLY_PAYMENT_DATABASE_URL"]
        return made

    message = r"(?s)Deployment payment, pod payment-.*ended with .*TALLY_PAYMENT_DATABASE_URL: need"
    with pytest.raises(ClusterError, match=message):
        async with Cluster.start(load(OVERLAY), tmp_path, ONLY_PAYMENT, make_secrets):
            pytest.fail("the cluster started")


async def test_a_migration_that_fails_is_named(tmp_path: Path) -> None:
    changed = overlay()
    job = changed.of_kind("Job")[0]
    changed.change(job.title, "container.command[4]", "twice")
    with pytest.raises(ClusterError, match=rf"(?s)Job {job.name}.*ended with 2"):
        async with Cluster.start(changed.objects, tmp_path, SMALL):
            pytest.fail("the cluster started")
