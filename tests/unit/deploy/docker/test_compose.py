"""The Compose file: names that exist, the manifests' policies, and controls for every rule."""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final
from unittest import mock

import pytest
import yaml

from common.environment import SettingsError
from common.settings import read
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
    Must,
    Rule,
    at_least,
    bad,
    controls_of,
    matches,
    named,
    of_kind,
    rule,
)
from tests.unit.deploy.kubernetes.manifests import (
    GONE,
    LOCAL,
    PORTS,
    SERVICES,
    SETTINGS_OF,
    Item,
    Overlay,
    load,
)
from tests.unit.deploy.kubernetes.network_rules import calls_of_the_code
from tests.unit.deploy.kubernetes.pod_rules import time_to_end_s
from tests.unit.deploy.kubernetes.scale_rules import RESERVED_CONNECTIONS, max_connections
from tests.unit.deploy.kubernetes.setting_rules import SECRETS, setting_names

FILE: Final = PROJECT / "deploy" / "docker" / "compose.yaml"
PROBE: Final = "common.rpc.probe"
ORDER, MIGRATION, BALANCE = "service/order", "service/order-migrate", "service/balance"
REDIS, POSTGRES, GATEWAY = "service/redis", "service/postgres", "service/gateway"
EVERY: Final = of_kind("service")
SERVERS: Final = EVERY.where(lambda each: each.name in SERVICES)
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


def secrets_of(each: Item) -> list[tuple[str, str]]:
    """The names of a service's secrets, and those of their files in the container."""
    entries = each.get("secrets", [])
    return [
        (one, one) if isinstance(one, str) else (one["source"], one["target"]) for one in entries
    ]


# ---- containers

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


@rule(
    EVERY,
    bad("redis:latest", "image", REDIS),
    bad("..", "build.context", BALANCE),
    bad("Dockerfile", "build.dockerfile", BALANCE),
    bad("1:1", "user", GATEWAY),
)
def images_are_those_of_the_manifests(each: Item) -> Iterator[str]:
    """What is tried out on one machine is what a cluster runs, and as the same user."""
    if each.get("image") not in [one.get("container.image") for one in load(LOCAL).workloads]:
        yield "no manifest runs this image"
    if build := each.get("build"):
        context = (FILE.parent / build["context"]).resolve()
        if context != PROJECT or not (context / build["dockerfile"]).is_file():
            yield "is not built from the project's Dockerfile"
        user = last(stages(), build["target"], "USER")
        if user.value != each.get("user"):
            yield "does not run as its image's user"


@rule(
    EVERY,
    bad({"context": "../.."}, "build"),
    bad(GONE, "build", GATEWAY),
    bad("missing", "pull_policy"),
    bad("never", "pull_policy", BALANCE),
)
def images_are_built_once(each: Item) -> Iterator[str]:
    """Two builds of one name at a time collide, and no image of that name may be pulled."""
    image, builds = each.get("image"), each.get("build") is not None
    ours = image.split(":")[0] in IMAGES.values()
    alike = [one for one in EVERY.select(each.overlay) if one.get("image") == image]
    if sum(one.get("build") is not None for one in alike) != ours:
        yield f"{image} is not built once"
    if ours and builds is (each.get("pull_policy") == "never"):
        yield "its pull_policy does not fit"


@rule(
    EVERY,
    bad({"orders": {"condition": "service_started"}}, "depends_on"),
    bad("service_healthy", "depends_on.order-migrate.condition"),
    bad("service_completed_successfully", "depends_on.redis.condition"),
    bad(GONE, "depends_on.order-migrate"),
)
def services_start_after_their_migration(each: Item) -> Iterator[str]:
    """And after nothing that does not exist, or never meets the condition."""
    after = each.get("depends_on", {})
    if each.name in SERVICES and f"{each.name}-migrate" not in after:
        yield "does not wait for its migration"
    for name, how in after.items():
        other = each.overlay.find("service", name) or Item(each.overlay, {})
        met = {
            "service_started": bool(other.raw),
            "service_healthy": other.get("healthcheck") is not None,
            "service_completed_successfully": other.get("restart") == "no",
        }
        if not met[how["condition"]]:
            yield f"waits in vain for {name}"


@rule(
    OWN,
    bad(["orders_service"], "command"),
    bad(["order_service"], "command", MIGRATION),
    bad("127.0.0.1:50051", "healthcheck.test[4]"),
    bad("0.0.0.0:50051", "environment.TALLY_BIND"),
    bad(["50053:50053"], "ports"),
)
def services_run_and_are_probed(each: Item) -> list[str]:
    """The image has no default program. Ports are published on this machine only."""
    service, port = service_of(each), PORTS[service_of(each)]
    wanted: dict[str, object] = {
        "command": [f"{service}_service"],
        "healthcheck.test": ["CMD", "python", "-m", PROBE, f"127.0.0.1:{port}"],
        "environment.TALLY_BIND": f"0.0.0.0:{port}",
        "ports": [f"127.0.0.1:${{{service.upper()}_PORTS:-{port}}}:{port}"],
    }
    if is_migration(each):
        wanted = {"command": [f"{service}_service", "migrate"]}
    return [path for path, value in wanted.items() if each.get(path) != value]


nothing_else_is_published = Rule(
    "A port of this machine is open to its other users.",
    EVERY.where(lambda each: each.name not in SERVICES),
    Check("ports", UNSET, bad(["127.0.0.1:6379:6379"], on=REDIS)),
)


def stop_grace_period_s(each: Item) -> int:
    return int(each.get("stop_grace_period").removesuffix("s"))


def as_long_as_ending_takes(each: Item) -> Must:
    times_s = [float(each.get(f"environment.TALLY_{name}_S")) for name in ("DRAIN_DELAY", "GRACE")]
    return at_least(time_to_end_s(*times_s))


servers_have_time_to_end = Rule(
    "A replica that is killed while it drains fails the calls that it has accepted.",
    SERVERS,
    Check(stop_grace_period_s, as_long_as_ending_takes, bad("40s", "stop_grace_period")),
)


def arguments_of_the_manifest(_: Item) -> list[str]:
    return ["postgres", *load(LOCAL).the("StatefulSet/postgres").get("container.args")]


postgres_is_that_of_the_manifests = Rule(
    "With the same options and limits.",
    named(POSTGRES),
    Check("command", arguments_of_the_manifest, bad(["postgres"])),
)


@rule(OVERLAY, bad("200", "environment.TALLY_POOL_SIZE", ORDER, "connections"))
def pools_of_four_replicas_fit_the_database(whole: Item) -> list[str]:
    """And a migration of each service beside them."""
    pools = [int(each.get("environment.TALLY_POOL_SIZE")) for each in SERVERS.select(whole.overlay)]
    opened = 4 * sum(pools) + len(pools) + RESERVED_CONNECTIONS
    most = max_connections(load(LOCAL).the("StatefulSet/postgres"))
    return [] if opened <= most else [f"{opened} connections, and {most} are allowed"]


# ---- settings and secrets


@rule(
    OWN,
    bad("8", "environment.TALLY_POOL_SIZES"),
    bad("eight", "environment.TALLY_POOL_SIZE"),
    bad([], "secrets", MIGRATION),
)
def settings_are_accepted(each: Item) -> Iterator[str]:
    """Each variable is a setting, and the service accepts all of them with its secrets."""
    settings_type = SETTINGS_OF[service_of(each)]
    given = dict(each.get("environment"))
    for name in given.keys() - setting_names(settings_type):
        yield f"{name} is no setting"
    for source, variable in secrets_of(each):
        file = Path(each.overlay.the(f"secret/{source}").get("file"))
        given[variable] = SECRETS[file.parent.name][file.name]
    del given["TALLY_SECRETS_DIR"]
    with mock.patch.dict(os.environ, given, clear=True):
        try:
            read(settings_type, "migrate" if is_migration(each) else "serve")
        except SettingsError as error:
            yield str(error)


@rule(SERVERS, bad("1", "environment.TALLY_GRACE_S"))
def settings_are_those_of_the_manifests(each: Item) -> list[str]:
    """Except for names, which Compose resolves to every replica without a headless Service."""
    theirs = load(LOCAL).the(f"Deployment/{each.name}").environment
    return [
        f"{name} differs"
        for name in sorted(theirs.keys() - {"TALLY_REPLICA", "TALLY_SECRETS_DIR"})
        if each.get(f"environment.{name}") != theirs[name].replace("-headless:", ":")
    ]


@rule(
    EVERY,
    bad([{"source": "x", "target": "x"}], "secrets"),
    bad("TALLY_ORDER_OWNER_DATABASE_URL", "secrets[0].target"),
    bad("TALLY_ORDER_DATABASE_URL", "secrets[0].target", MIGRATION),
    bad("TALLY_COUPON_DATABASE_URL", "secrets[0].target"),
    bad("redis://redis", "environment.TALLY_REDIS_URL"),
)
def secrets_are_files_of_those_who_need_them(each: Item) -> Iterator[str]:
    """The owner's database URL is the migration's alone, and no secret is a variable."""
    for source, target in secrets_of(each):
        if not each.overlay.has(f"secret/{source}"):
            yield f"there is no secret {source}"
        if ("OWNER" in target) is not is_migration(each):
            yield f"must not have {target}"
        if target.endswith("DATABASE_URL") and f"TALLY_{service_of(each).upper()}_" not in target:
            yield f"{target} belongs to another service"
    for name in each.get("environment", {}):
        if re.search(r"PASSWORD$|_KEY$|(?<!GATEWAY)_URL$", name):
            yield f"{name} is a secret and a variable"


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
    secrets = whole.overlay.of_kind("secret")
    yield from map(str, {(FILE.parent / each.get("file")).resolve() for each in secrets} - made)
    services = EVERY.select(whole.overlay)
    used = {
        "secret": {source for each in services for source, _ in secrets_of(each)},
        "volume": {one.split(":")[0] for each in services for one in each.get("volumes", [])},
        "network": {one for each in services for one in each.get("networks")},
    }
    for kind, names in used.items():
        declared = {each.name for each in whole.overlay.of_kind(kind)}
        yield from (f"{kind}/{name}" for name in names ^ declared)


# ---- networks


@rule(
    OVERLAY,
    bad(["coupon"], "networks", BALANCE, "['balance', 'coupon']"),
    bad(["order-data"], "networks", ORDER, "['coupon', 'order']"),
)
def networks_are_the_calls_of_the_code(whole: Item) -> list[str]:
    """Services of one network reach each other. A service's stores and migration share one too."""
    members: dict[str, set[str]] = {}
    for each in EVERY.select(whole.overlay):
        for network in each.get("networks"):
            members.setdefault(network, set()).add(each.name)
    pairs = {
        frozenset({one, other})
        for group in members.values()
        for one in group
        for other in group - {one}
    }
    needed = {
        frozenset({caller.replace(" migration", "-migrate"), callee})
        for caller, callee, _ in calls_of_the_code(load(LOCAL))
        if caller != "client"
    }
    beside = {frozenset({"postgres", "redis"})}
    for service in SERVICES:
        beside |= {frozenset({f"{service}-migrate", other}) for other in (service, "redis")}
    return [str(sorted(pair)) for pair in (needed - pairs) | (pairs - needed - beside)]


@rule(of_kind("network"), bad(True, "internal"), bad(GONE, "internal", "network/order-data"))
def only_networks_of_published_ports_have_a_way_out(each: Item) -> list[str]:
    """An internal network carries no published port, and no call into the internet."""
    internal = bool(each.get("internal"))
    return [] if internal is not (each.name in SERVICES) else [f"{internal=}"]


# ---- the tests

RULES: Final = {name: found for name, found in vars().items() if isinstance(found, Rule)}


@pytest.mark.parametrize("name", RULES)
def test_rule(name: str) -> None:
    assert RULES[name].faults(compose()) == []


@pytest.mark.parametrize(("name", "check", "control"), controls_of(RULES), ids=str)
def test_control(name: str, check: Check, control: Control) -> None:
    says, faults = RULES[name].broken_by(control, check, [compose()])
    assert any(says in fault for fault in faults), faults


def test_the_probe_exists() -> None:
    assert importlib.util.find_spec(PROBE) is not None
