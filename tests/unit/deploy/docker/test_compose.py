"""The Compose file: names that exist, the manifests' policies, and a control for each rule."""

from __future__ import annotations

import copy
import importlib.util
import os
import re
from collections.abc import Callable
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any, Final
from unittest import mock

import pytest
import yaml

from common.settings import SettingsError, read
from deploy.docker import secret_files
from deploy.docker.image import IMAGES
from deploy.local.plan import PROJECT
from order_service.clients import Services
from tests.unit.deploy.docker.dockerfile import last, stages
from tests.unit.deploy.kubernetes.manifests import PORTS, SERVICES, SETTINGS_OF, Workload, load
from tests.unit.deploy.kubernetes.pod_rules import time_to_end_s
from tests.unit.deploy.kubernetes.setting_rules import SECRETS, setting_names

Compose = dict[str, Any]

FILE: Final = PROJECT / "deploy" / "docker" / "compose.yaml"
RESERVED_CONNECTIONS: Final = 3
STORES: Final = ("postgres", "redis")


@cache
def _text() -> str:
    return FILE.read_text(encoding="utf-8")


def compose() -> Compose:
    """A copy of one's own."""
    loaded: Compose = copy.deepcopy(yaml.safe_load(_text()))
    return loaded


def target_of(entry: Any) -> tuple[str, str]:
    """A service's secret: its name, and the file's in the container."""
    return (entry, entry) if isinstance(entry, str) else (entry["source"], entry["target"])


def hardened(found: Compose) -> list[str]:
    return [
        name
        for name, each in found["services"].items()
        if each.get("read_only") is not True
        or each.get("cap_drop") != ["ALL"]
        or each.get("security_opt") != ["no-new-privileges:true"]
        or not re.fullmatch(r"[1-9]\d*:[1-9]\d*", each.get("user", ""))
        or "mem_limit" not in each
        or "stop_grace_period" not in each
        or {"privileged", "cap_add", "network_mode", "pid"} & each.keys()
    ]


def images(found: Compose) -> list[str]:
    """Those of the manifests; ours are built from targets that exist."""
    known = {each.containers[0]["image"] for each in load("local").workloads}
    faults = [name for name, each in found["services"].items() if each["image"] not in known]
    for name, each in found["services"].items():
        if "build" in each:
            context = (FILE.parent / each["build"]["context"]).resolve()
            user = last(stages(), each["build"]["target"], "USER")
            if context != PROJECT or not (context / each["build"]["dockerfile"]).is_file():
                faults.append(name)
            if user is None or user.value != each["user"]:
                faults.append(name)
    return faults


def built_once(found: Compose) -> list[str]:
    """Builds run at the same time, and two of one name collide where that is not there yet."""
    faults = []
    for name, each in found["services"].items():
        ours = each["image"].split(":")[0] in IMAGES.values()
        builders = [
            other
            for other, one in found["services"].items()
            if one["image"] == each["image"] and "build" in one
        ]
        if len(builders) != ours:
            faults.append(name)
        # Of what is built here nothing must be fetched under the same name.
        if ours and name not in builders and each.get("pull_policy") != "never":
            faults.append(name)
        if name in builders and each.get("pull_policy") == "never":
            faults.append(name)
    return faults


def started_after(found: Compose) -> list[str]:
    faults = []
    for name, each in found["services"].items():
        for before, how in each.get("depends_on", {}).items():
            other = found["services"].get(before)
            fits = other is not None and (
                how["condition"] == "service_started"
                or (how["condition"] == "service_healthy" and "healthcheck" in other)
                or (
                    how["condition"] == "service_completed_successfully"
                    and other.get("restart") == "no"
                )
            )
            if not fits:
                faults.append(name)
    for service in SERVICES:
        after = found["services"][service].get("depends_on", {})
        if f"{service}-migrate" not in after:
            faults.append(service)
    return faults


def commands(found: Compose) -> list[str]:
    faults = []
    for service in SERVICES:
        own, migrating = found["services"][service], found["services"][f"{service}-migrate"]
        if own["command"] != [f"{service}_service"]:
            faults.append(service)
        if migrating["command"] != [f"{service}_service", "migrate"]:
            faults.append(f"{service}-migrate")
        probe = ["CMD", "python", "-m", "common.rpc.probe", f"127.0.0.1:{PORTS[service]}"]
        if own["healthcheck"]["test"] != probe or importlib.util.find_spec(probe[3]) is None:
            faults.append(service)
    return faults


def settings(found: Compose) -> list[str]:
    """Every variable is a setting, and the service accepts them with its secrets."""
    faults = []
    for service, settings_type in SETTINGS_OF.items():
        for name, command in ((service, "serve"), (f"{service}-migrate", "migrate")):
            each = found["services"][name]
            given = dict(each["environment"])
            if not given.keys() <= setting_names(settings_type):
                faults.append(name)
            for source, variable in map(target_of, each["secrets"]):
                file = Path(found["secrets"][source]["file"])
                given[variable] = SECRETS[file.parent.name][file.name]
            del given["TALLY_SECRETS_DIR"]
            with mock.patch.dict(os.environ, given, clear=True):
                try:
                    read(settings_type, "migrate" if command == "migrate" else "serve")
                except SettingsError:
                    faults.append(name)
    return faults


def same_as_in_kubernetes(found: Compose) -> list[str]:
    overlay, faults = load("local"), []
    for each in overlay.servers:
        theirs = overlay.environment(each.containers[0])
        mine = found["services"][each.service]["environment"]
        names = theirs.keys() - {"TALLY_REPLICA", "TALLY_SECRETS_DIR"}
        for name in sorted(names):
            wanted = theirs[name].replace("-headless:", ":")
            if mine.get(name) != wanted:
                faults.append(each.service)
    server = Workload(overlay.the("StatefulSet", "postgres")).containers[0]
    if found["services"]["postgres"]["command"] != ["postgres", *server["args"]]:
        faults.append("postgres")
    return faults


def ports(found: Compose) -> list[str]:
    """Published on this machine only, and on the port that is bound."""
    faults = []
    for name, each in found["services"].items():
        for port in each.get("ports", []):
            told = re.fullmatch(r"127\.0\.0\.1:\$\{[A-Z]+_PORTS:-(\d+)\}:(\d+)", port)
            if told is None or not told[1] == told[2] == str(PORTS.get(name)):
                faults.append(name)
        if name in SERVICES and (
            len(each.get("ports", [])) != 1
            or each["environment"]["TALLY_BIND"] != f"0.0.0.0:{PORTS[name]}"
        ):
            faults.append(name)
    return faults


def secrets(found: Compose) -> list[str]:
    """Files that are made, each for those who need it; nothing of them in the environment."""
    faults = []
    for name, each in found["secrets"].items():
        file = (FILE.parent / each["file"]).resolve()
        known = file.name in SECRETS.get(file.parent.name, {})
        if file.parents[1] != secret_files.DIRECTORY or not known:
            faults.append(name)
    for name, each in found["services"].items():
        of = name.removesuffix("-migrate")
        for source, target in map(target_of, each.get("secrets", [])):
            owner = "OWNER" in target
            if source not in found["secrets"] or (owner is not name.endswith("-migrate")):
                faults.append(name)
            if target.endswith("DATABASE_URL") and f"TALLY_{of.upper()}_" not in target:
                faults.append(name)
        told = " ".join(each.get("environment", {}))
        if re.search(r"PASSWORD\b|_KEY\b|(?<!GATEWAY)_URL\b", told):
            faults.append(name)
    used = {
        target_of(entry)[0]
        for each in found["services"].values()
        for entry in each.get("secrets", [])
    }
    return faults + sorted(found["secrets"].keys() ^ used)


def edges_of_the_code() -> set[frozenset[str]]:
    edges = {frozenset({"order", peer.name}) for peer in fields(Services)}
    for service, settings_type in SETTINGS_OF.items():
        edges |= {frozenset({service, store}) for store in STORES}
        edges |= {frozenset({f"{service}-migrate", "postgres"})}
        if "gateway_url" in settings_type.model_fields:
            edges |= {frozenset({service, "gateway"})}
    return edges


def networks(found: Compose) -> list[str]:
    """Who shares a network is who calls whom; a service's stores and migration share one too."""
    members: dict[str, set[str]] = {name: set() for name in found["networks"]}
    for name, each in found["services"].items():
        for network in each["networks"]:
            members.setdefault(network, set()).add(name)
    pairs = {
        frozenset({one, other})
        for group in members.values()
        for one in group
        for other in group
        if one != other
    }
    beside = {frozenset(STORES)}
    for service in SERVICES:
        beside |= {frozenset({service, f"{service}-migrate"})}
        beside |= {frozenset({f"{service}-migrate", "redis"})}
    needed = edges_of_the_code()
    faults = [str(sorted(pair)) for pair in (needed - pairs) | (pairs - needed - beside)]
    faults += sorted(members.keys() ^ found["networks"].keys())
    for name, options in found["networks"].items():
        # Only a network that carries a published port has a way out.
        if bool((options or {}).get("internal")) is (name in SERVICES):
            faults.append(name)
    return faults


def time_to_end(found: Compose) -> list[str]:
    faults = []
    for service in SERVICES:
        each = found["services"][service]
        told = each["environment"]
        needed_s = time_to_end_s(float(told["TALLY_DRAIN_DELAY_S"]), float(told["TALLY_GRACE_S"]))
        if int(each["stop_grace_period"].removesuffix("s")) < needed_s:
            faults.append(service)
    return faults


def pools(found: Compose) -> list[str]:
    services = found["services"]
    opened = sum(int(services[each]["environment"]["TALLY_POOL_SIZE"]) for each in SERVICES)
    allowed = re.search(r"max_connections=(\d+)", " ".join(services["postgres"]["command"]))
    # Four replicas of each fit, and its migrations.
    fits = allowed and 4 * opened + len(SERVICES) + RESERVED_CONNECTIONS <= int(allowed[1])
    return [] if fits else ["postgres"]


def volumes(found: Compose) -> list[str]:
    used = {
        volume.split(":")[0]
        for each in found["services"].values()
        for volume in each.get("volumes", [])
    }
    return sorted(used ^ found["volumes"].keys())


def _set(*path: str, value: Any) -> Callable[[Compose], None]:
    def broken(found: Compose) -> None:
        place = found
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value

    return broken


_ORDER: Final = ("services", "order")
RULES: Final[dict[Callable[[Compose], list[str]], tuple[str, Callable[[Compose], None]]]] = {
    hardened: ("redis", _set("services", "redis", "read_only", value=False)),
    images: ("redis", _set("services", "redis", "image", value="redis:latest")),
    started_after: ("order", _set(*_ORDER, "depends_on", value={"orders": {"condition": "x"}})),
    commands: ("order", _set(*_ORDER, "command", value=["orders_service"])),
    settings: ("order", _set(*_ORDER, "environment", "TALLY_POOL_SIZE", value="eight")),
    same_as_in_kubernetes: ("order", _set(*_ORDER, "environment", "TALLY_GRACE_S", value="1")),
    ports: ("order", _set(*_ORDER, "ports", value=["50053:50053"])),
    secrets: ("order", _set(*_ORDER, "environment", "TALLY_REDIS_URL", value="redis://redis")),
    networks: ("['balance', 'coupon']", _set("services", "balance", "networks", value=["coupon"])),
    time_to_end: ("order", _set(*_ORDER, "stop_grace_period", value="40s")),
    built_once: ("order", _set(*_ORDER, "build", value={"context": "../.."})),
    pools: ("postgres", _set(*_ORDER, "environment", "TALLY_POOL_SIZE", value="200")),
    volumes: ("postgres", _set("services", "postgres", "volumes", value=[])),
}
"""Each rule, what it must name when it is broken, and what breaks it."""


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule(rule: Callable[[Compose], list[str]]) -> None:
    assert rule(compose()) == []


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_control(rule: Callable[[Compose], list[str]]) -> None:
    named, broken = RULES[rule]
    found = compose()
    broken(found)
    assert named in rule(found)
