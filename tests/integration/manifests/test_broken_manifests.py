"""Controls: an error in a manifest is found by running it, and the object at fault is named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from deploy.kubernetes.secrets import secret_objects
from deploy.local.plan import Backends
from tests.support.cluster import OVERLAY, Changes, Cluster, ClusterError, ManifestError, load
from tests.support.cluster.manifest import Object

SMALL = Changes(replicas={"balance": 1, "coupon": 1, "order": 1, "payment": 1})

pytestmark = pytest.mark.timeout(300)


def named(objects: Sequence[Object], kind: str, name: str) -> Any:
    """The object; by the beginning of its name, for a ConfigMap's ends in a hash."""
    (found,) = (
        each
        for each in objects
        if each["kind"] == kind
        and (each["metadata"]["name"] == name or kind == "ConfigMap")
        and each["metadata"]["name"].startswith(name)
    )
    return found


def container(objects: Sequence[Object], name: str, kind: str = "Deployment") -> Any:
    """The one container of a Deployment's pods."""
    return named(objects, kind, name)["spec"]["template"]["spec"]["containers"][0]


def _probe_port(objects: Sequence[Object]) -> None:
    container(objects, "coupon")["readinessProbe"]["grpc"]["port"] = 50051


def _service_selector(objects: Sequence[Object]) -> None:
    named(objects, "Service", "payment-headless")["spec"]["selector"]["app.kubernetes.io/name"] = (
        "pay"
    )


def _own_selector(objects: Sequence[Object]) -> None:
    named(objects, "Deployment", "order")["spec"]["selector"]["matchLabels"]["extra"] = "x"


def _target_port(objects: Sequence[Object]) -> None:
    named(objects, "Service", "balance")["spec"]["ports"][0]["targetPort"] = "grcp"


def _setting(objects: Sequence[Object]) -> None:
    settings = named(objects, "ConfigMap", "tally-settings")["data"]
    settings["TALLY_POOLSIZE"] = settings.pop("TALLY_POOL_SIZE")


def _config_map(objects: Sequence[Object]) -> None:
    container(objects, "order")["envFrom"][0]["configMapRef"]["name"] = "tally-setting"


def _peer(objects: Sequence[Object]) -> None:
    settings = named(objects, "ConfigMap", "order-settings")["data"]
    settings["TALLY_ORDER_COUPON_ADDRESS"] = "dns:///coupons-headless:50052"


def _peer_port(objects: Sequence[Object]) -> None:
    settings = named(objects, "ConfigMap", "payment-settings")["data"]
    settings["TALLY_PAYMENT_GATEWAY_URL"] = "http://gateway:80"


def _env_source(objects: Sequence[Object]) -> None:
    field = {"fieldRef": {"fieldPath": "metadata.nom"}}
    container(objects, "balance")["env"].append({"name": "TALLY_LOG_LEVEL", "valueFrom": field})


def _secret(objects: Sequence[Object]) -> None:
    (volume,) = (
        each
        for each in named(objects, "Deployment", "balance")["spec"]["template"]["spec"]["volumes"]
        if "secret" in each
    )
    volume["secret"]["secretName"] = "balance-run"


def _command(objects: Sequence[Object]) -> None:
    container(objects, "payment")["command"][2] = "payments_service"


def _kind(objects: Sequence[Object]) -> None:
    named(objects, "Service", "balance")["kind"] = "Servise"


BROKEN: dict[Callable[[Sequence[Object]], None], str] = {
    _probe_port: r"Deployment coupon: readinessProbe: port 50051 is none of the container's",
    _service_selector: r"Service payment-headless: its selector .* selects no pod",
    _own_selector: r"Deployment order: its selector does not select its own pods",
    _target_port: r"Service balance: Deployment balance has no port grcp",
    _setting: r"Deployment balance, container server: TALLY_POOLSIZE is no setting",
    _config_map: r"Deployment order, .*: there is no ConfigMap tally-setting$",
    _peer: r"Deployment order, .*TALLY_ORDER_COUPON_ADDRESS names coupons-headless:50052, and",
    _peer_port: r"Deployment payment, .*GATEWAY_URL names gateway:80; Service gateway has 50055",
    _env_source: r"Deployment balance, .*env TALLY_LOG_LEVEL: a source that is not known",
    _secret: r"Deployment balance, .*: there is no Secret balance-run$",
    _command: r"Deployment payment, .*: there is no module payments_service",
    _kind: r"Servise balance: a kind that",
}


@pytest.mark.parametrize(
    ("broken", "told"), BROKEN.items(), ids=lambda each: getattr(each, "__name__", "")
)
async def test_what_does_not_hold_together_is_named(
    broken: Callable[[Sequence[Object]], None], told: str, tmp_path: Path
) -> None:
    objects = load(OVERLAY)
    broken(objects)
    with pytest.raises(ManifestError, match=told):
        async with Cluster.start(objects, tmp_path, SMALL):
            pytest.fail("it came up")


async def test_a_container_that_ends_is_named_with_its_last_words(tmp_path: Path) -> None:
    def make_secrets(backends: Backends) -> list[Object]:
        made = secret_objects(backends)
        del named(made, "Secret", "payment-runtime")["stringData"]["TALLY_PAYMENT_DATABASE_URL"]
        return made

    told = r"(?s)Deployment payment, pod payment-.*ended with .*TALLY_PAYMENT_DATABASE_URL: needed"
    with pytest.raises(ClusterError, match=told):
        async with Cluster.start(load(OVERLAY), tmp_path, SMALL, make_secrets):
            pytest.fail("it came up")


async def test_a_migration_that_fails_is_named(tmp_path: Path) -> None:
    objects = load(OVERLAY)
    job = next(each for each in objects if each["kind"] == "Job")
    container(objects, job["metadata"]["name"], "Job")["command"].append("twice")
    with pytest.raises(ClusterError, match=rf"(?s)Job {job['metadata']['name']}.*ended with 2"):
        async with Cluster.start(objects, tmp_path, SMALL):
            pytest.fail("it came up")
