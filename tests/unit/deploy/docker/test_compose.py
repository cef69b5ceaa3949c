"""The Compose file: names that exist, the manifests' policies, and controls for every rule."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from common.rpc import probe
from deploy.docker import secret_files
from deploy.docker.image import IMAGES
from deploy.local.plan import PROJECT
from tests.unit.deploy.docker.dockerfile import last, stages
from tests.unit.deploy.kubernetes.engine import (
    OVERLAY,
    SET,
    UNSET,
    Check,
    Control,
    Rule,
    bad,
    controls_of,
    matches,
    named,
    of_kind,
    one_of,
    rule,
)
from tests.unit.deploy.kubernetes.manifests import (
    GONE,
    LOCAL,
    PORTS,
    SERVICES,
    Item,
    Overlay,
    load,
)
from tests.unit.deploy.kubernetes.network_rules import calls_of_the_code
from tests.unit.deploy.kubernetes.setting_rules import SECRETS

FILE: Final = PROJECT / "deploy" / "docker" / "compose.yaml"
SECRETS_DIR: Final = "/run/secrets"
ORDER, MIGRATION, BALANCE = "service/order", "service/order-migrate", "service/balance"
REDIS, POSTGRES, GATEWAY = "service/redis", "service/postgres", "service/gateway"
EVERY: Final = of_kind("service")
OWN: Final = EVERY.where(lambda each: service_of(each) in SERVICES)


@cache
def _as_json() -> str:
    content = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    kinds = ("services", "networks", "volumes", "secrets")
    return json.dumps(
        [
            {"kind": kind.removesuffix("s"), "metadata": {"name": name}, **(each or {})}
            for kind in kinds
            for name, each in content[kind].items()
        ]
    )


def compose() -> Overlay:
    """A new copy of the file as objects: service/order, network/order, secret/redis_url …"""
    return Overlay("compose", json.loads(_as_json()))


def service_of(each: Item) -> str:
    return each.name.removesuffix("-migrate")


def is_migration(each: Item) -> bool:
    return each.name.endswith("-migrate")


def secrets_of(each: Item) -> dict[str, str]:
    """The names of a service's secrets, by those of their files in the container."""
    entries = [
        {"source": one, "target": one} if isinstance(one, str) else one
        for one in each.get("secrets", [])
    ]
    return {one["target"]: one["source"] for one in entries}


containers_have_no_privileges = Rule(
    "Whoever takes over a process gains nothing else, as in the manifests.",
    EVERY,
    Check("read_only", True, bad(False, on=REDIS)),
    Check("cap_drop", ["ALL"], bad(GONE)),
    Check("cap_add", UNSET, bad(["NET_RAW"])),
    Check("security_opt", ["no-new-privileges:true"], bad(GONE)),
    Check("user", matches(r"[1-9]\d*:[1-9]\d*"), bad("0:0")),
    Check("privileged", UNSET, bad(True)),
    Check("network_mode", UNSET, bad("host")),
    Check("pid", UNSET, bad("host")),
    Check("mem_limit", SET, bad(GONE)),
    Check("stop_grace_period", SET, bad(GONE)),
)


def published(each: Item) -> list[str] | None:
    """Ports of servers, on this machine only: its other users could call any other one."""
    if each.name not in SERVICES:
        return None
    port = PORTS[each.name]
    return [f"127.0.0.1:${{{each.name.upper()}_PORTS:-{port}}}:{port}"]


def build(each: Item) -> dict[str, str] | None:
    """`balance` builds the image of all services: two builds of one name at a time collide."""
    target = {"balance": "server", "gateway": "simulator"}.get(each.name)
    path = "deploy/docker/Dockerfile"
    return {"context": "../..", "dockerfile": path, "target": target} if target else None


def user_of_the_image(each: Item) -> str:
    target = "simulator" if each.name == "gateway" else "server"
    return last(stages(), target, "USER").value


containers_are_those_of_the_manifests = Rule(
    "What is tried out on one machine is what a cluster runs.",
    EVERY,
    Check(
        "image",
        one_of(*(each.get("container.image") for each in load(LOCAL).workloads)),
        bad("redis:latest", on=REDIS),
    ),
    Check("build", build, bad(GONE, on=GATEWAY), bad({"context": "../.."})),
    Check("ports", published, bad(["50053:50053"]), bad(["127.0.0.1:6379:6379"], on=REDIS)),
)

containers_run_as_the_images_user = Rule(
    "The image's files and volumes belong to this user.",
    EVERY.where(lambda each: each.get("image").partition(":")[0] in IMAGES.values()),
    Check("user", user_of_the_image, bad("1:1"), bad("1:1", on=GATEWAY)),
)

postgres_is_that_of_the_manifests = Rule(
    "With the same options and limits; migrations wait for its health.",
    named(POSTGRES),
    Check("healthcheck", SET, bad(GONE)),
    Check(
        "command",
        ["postgres", *load(LOCAL).the("StatefulSet/postgres").get("container.args")],
        bad(["postgres"]),
    ),
)

# ---- services and migrations


def program(each: Item) -> dict[str, Any]:
    """The fields of a service's migration, or of its server, which begins after it."""
    service, port = service_of(each), PORTS[service_of(each)]
    if is_migration(each):
        return {
            "command": [f"{service}_service", "migrate"],
            "depends_on": {"postgres": {"condition": "service_healthy"}},
            "environment": {"TALLY_SECRETS_DIR": SECRETS_DIR},
            "pull_policy": "never",
            "restart": "no",
        }
    server = load(LOCAL).the(f"Deployment/{service}")
    # Without TALLY_REPLICA; Compose resolves a name to every replica without a headless Service.
    environment = {**server.environment, "TALLY_SECRETS_DIR": SECRETS_DIR}
    del environment["TALLY_REPLICA"]
    sleep_s = server.get("container.lifecycle.preStop.sleep.seconds")
    return {
        "command": [f"{service}_service"],
        "depends_on": {
            f"{service}-migrate": {"condition": "service_completed_successfully"},
            "redis": {"condition": "service_started"},
        },
        "environment": {name: text.replace("-headless", "") for name, text in environment.items()},
        "healthcheck.test": ["CMD", "python", "-m", probe.__name__, f"127.0.0.1:{port}"],
        # An image of Tally is built, never pulled.
        "pull_policy": "missing" if build(each) else "never",
        "stop_grace_period": f"{server.get('pod.terminationGracePeriodSeconds') - sleep_s}s",
    }


@rule(
    OWN,
    bad(["orders_service"], "command"),
    bad(["order_service"], "command", MIGRATION),
    bad(GONE, "depends_on.order-migrate"),
    bad("always", "restart", MIGRATION),
    bad("1", "environment.TALLY_GRACE_S"),
    bad("redis://redis", "environment.TALLY_REDIS_URL"),
    bad("127.0.0.1:50051", "healthcheck.test[4]"),
    bad("missing", "pull_policy"),
    bad("never", "pull_policy", BALANCE),
    bad("40s", "stop_grace_period"),
)
def services_are_those_of_the_manifests(each: Item) -> list[str]:
    """The rules about the manifests' settings, time limits and connections hold here too."""
    return [path for path, value in program(each).items() if each.get(path) != value]


def secrets(each: Item) -> dict[str, str]:
    """The contents of a service's secrets, by the names of their files in the container."""
    paths = {
        target: Path(each.overlay.the(f"secret/{source}").get("file"))
        for target, source in secrets_of(each).items()
    }
    return {target: SECRETS[path.parent.name][path.name] for target, path in paths.items()}


secrets_are_those_of_the_manifests = Rule(
    "The owner's database URL is the migration's alone.",
    OWN,
    Check(
        secrets,
        lambda each: SECRETS[f"{service_of(each)}-{'owner' if is_migration(each) else 'runtime'}"],
        bad("TALLY_ORDER_OWNER_DATABASE_URL", "secrets[0].target"),
        bad("TALLY_ORDER_DATABASE_URL", "secrets[0].target", MIGRATION),
        bad("coupon_database_url", "secrets[0].source"),
        bad([], "secrets", MIGRATION),
    ),
)


@rule(
    OVERLAY,
    bad("../../.tally/compose/redis/redis.conf", "file", "secret/redis_conf", "redis.conf"),
    bad("../compose/redis/valkey.conf", "file", "secret/redis_conf", "compose/redis/valkey.conf"),
    bad([], "volumes", POSTGRES, "volume/postgres"),
    bad([], "secrets", REDIS, "secret/redis_conf"),
    bad(["x"], "networks", REDIS, "network/x"),
)
def what_is_declared_is_made_and_used(whole: Item) -> Iterator[str]:
    """`make compose-secrets` makes the files; Compose refuses a name that is not declared."""
    made = {secret_files.DIRECTORY / name / key for name, data in SECRETS.items() for key in data}
    files = {(FILE.parent / each.get("file")).resolve() for each in whole.overlay.of_kind("secret")}
    yield from map(str, files - made)
    services = EVERY.select(whole.overlay)
    used = {
        "secret": {source for each in services for source in secrets_of(each).values()},
        "volume": {one.split(":")[0] for each in services for one in each.get("volumes", [])},
        "network": {one for each in services for one in each.get("networks")},
    }
    for kind, names in used.items():
        declared = {each.name for each in whole.overlay.of_kind(kind)}
        yield from (f"{kind}/{name}" for name in names ^ declared)


# ---- networks


def networks(each: Item) -> set[str]:
    return {*each.get("networks")}


def networks_of_its_calls(each: Item) -> set[str]:
    """That of its name, those of what it calls, and one for each service with its stores."""
    calls = {(caller, callee) for caller, callee, _ in calls_of_the_code(load(LOCAL))}
    stores = {
        f"{service}-data"
        for service in SERVICES
        if each.name in (service, f"{service}-migrate", "postgres", "redis")
    }
    called = {callee for _, callee in calls} - {"postgres", "redis"}
    return stores | {one for one in called if one == each.name or (each.name, one) in calls}


networks_are_the_calls_of_the_code = Rule(
    "Services of one network reach each other.",
    EVERY,
    Check(
        networks,
        networks_of_its_calls,
        bad(["coupon"], "networks", BALANCE),
        bad(["order-data"], "networks"),
    ),
)

only_networks_of_published_ports_have_a_way_out = Rule(
    "An internal network carries no published port, and no call into the internet.",
    of_kind("network"),
    Check(
        "internal",
        lambda each: None if each.name in SERVICES else True,
        bad(True),
        bad(GONE, on="network/order-data"),
    ),
)

# ---- the tests

RULES: Final = {name: found for name, found in vars().items() if isinstance(found, Rule)}


@pytest.mark.parametrize("name", RULES)
def test_rule(name: str) -> None:
    assert RULES[name].faults(compose()) == []


@pytest.mark.parametrize(("name", "check", "control"), controls_of(RULES), ids=str)
def test_control(name: str, check: Check, control: Control) -> None:
    says, faults = RULES[name].broken_by(control, check, [compose()])
    assert any(says in fault for fault in faults), faults
