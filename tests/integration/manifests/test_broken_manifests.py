"""Controls: running a manifest finds its error, and the message names the object."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from deploy.kubernetes.secrets import secret_objects
from deploy.local.plan import Backends
from tests.support.cluster import OVERLAY, Changes, Cluster, ClusterError, ManifestError, load
from tests.support.cluster.manifest import Object

SMALL = Changes(replicas={"balance": 1, "coupon": 1, "order": 1, "payment": 1})
POD = ("spec", "template", "spec")
CONTAINER = (*POD, "containers", 0)

pytestmark = pytest.mark.timeout(300)


def named(objects: Sequence[Object], kind: str, name: str) -> Object:
    """The object; a ConfigMap by the beginning of its name, which ends in a hash."""
    (found,) = (
        each
        for each in objects
        if each["kind"] == kind
        and each["metadata"]["name"].startswith(name)
        and (each["metadata"]["name"] == name or kind == "ConfigMap")
    )
    return found


def change(found: Any, *path: str | int, value: object) -> None:
    for step in path[:-1]:
        found = found[step]
    found[path[-1]] = value


BROKEN: dict[str, tuple[tuple[str, str], tuple[str | int, ...], object, str]] = {
    "port of a probe": (
        ("Deployment", "coupon"),
        (*CONTAINER, "readinessProbe", "grpc", "port"),
        50051,
        r"Deployment coupon: readinessProbe: port 50051 is none of the container's",
    ),
    "selector of a Service": (
        ("Service", "payment-headless"),
        ("spec", "selector", "app.kubernetes.io/name"),
        "pay",
        r"Service payment-headless: its selector .* selects no pod",
    ),
    "selector of a Deployment": (
        ("Deployment", "order"),
        ("spec", "selector", "matchLabels", "extra"),
        "x",
        r"Deployment order: its selector does not select its own pods",
    ),
    "target port": (
        ("Service", "balance"),
        ("spec", "ports", 0, "targetPort"),
        "grcp",
        r"Service balance: Deployment balance has no port grcp",
    ),
    "setting": (
        ("ConfigMap", "tally-settings"),
        ("data", "TALLY_POOLSIZE"),
        "8",
        r"Deployment balance, container server: TALLY_POOLSIZE is no setting",
    ),
    "ConfigMap": (
        ("Deployment", "order"),
        (*CONTAINER, "envFrom", 0, "configMapRef", "name"),
        "tally-setting",
        r"Deployment order, .*: there is no ConfigMap tally-setting$",
    ),
    "address of a service": (
        ("ConfigMap", "order-settings"),
        ("data", "TALLY_ORDER_COUPON_ADDRESS"),
        "dns:///coupons-headless:50052",
        r"Deployment order, .*TALLY_ORDER_COUPON_ADDRESS names coupons-headless:50052, and",
    ),
    "port of the gateway": (
        ("ConfigMap", "payment-settings"),
        ("data", "TALLY_PAYMENT_GATEWAY_URL"),
        "http://gateway:80",
        r"Deployment payment, .*GATEWAY_URL names gateway:80; Service gateway has 50055",
    ),
    "source of a variable": (
        ("Deployment", "balance"),
        (*CONTAINER, "env", 0),
        {"name": "TALLY_LOG_LEVEL", "valueFrom": {"fieldRef": {"fieldPath": "metadata.nom"}}},
        r"Deployment balance, .*env TALLY_LOG_LEVEL: a source that is not known",
    ),
    "Secret": (
        ("Deployment", "balance"),
        (*POD, "volumes", 1, "secret", "secretName"),
        "balance-run",
        r"Deployment balance, .*: there is no Secret balance-run$",
    ),
    "module": (
        ("Deployment", "payment"),
        (*CONTAINER, "command", 2),
        "payments_service",
        r"Deployment payment, .*: there is no module payments_service",
    ),
    "kind": (("Service", "balance"), ("kind",), "Servise", r"Servise balance: a kind that"),
}
"""The changed object, the path and value, and the message, by the field that is wrong."""


@pytest.mark.parametrize("field", BROKEN)
async def test_a_wrong_field_is_named(field: str, tmp_path: Path) -> None:
    (kind, name), path, value, message = BROKEN[field]
    objects = load(OVERLAY)
    change(named(objects, kind, name), *path, value=value)
    with pytest.raises(ManifestError, match=message):
        async with Cluster.start(objects, tmp_path, SMALL):
            pytest.fail("the cluster started")


async def test_a_container_that_ends_is_named_with_its_log(tmp_path: Path) -> None:
    def make_secrets(backends: Backends) -> list[Object]:
        made = secret_objects(backends)
        del named(made, "Secret", "payment-runtime")["stringData"]["TALLY_PAYMENT_DATABASE_URL"]
        return made

    message = r"(?s)Deployment payment, pod payment-.*ended with .*TALLY_PAYMENT_DATABASE_URL: need"
    with pytest.raises(ClusterError, match=message):
        async with Cluster.start(load(OVERLAY), tmp_path, SMALL, make_secrets):
            pytest.fail("the cluster started")


async def test_a_migration_that_fails_is_named(tmp_path: Path) -> None:
    objects = load(OVERLAY)
    job = next(each for each in objects if each["kind"] == "Job")
    job["spec"]["template"]["spec"]["containers"][0]["command"].append("twice")
    with pytest.raises(ClusterError, match=rf"(?s)Job {job['metadata']['name']}.*ended with 2"):
        async with Cluster.start(objects, tmp_path, SMALL):
            pytest.fail("the cluster started")
