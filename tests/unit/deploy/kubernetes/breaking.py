"""A control: one way to break one rule, and the ways in which rendered objects are broken."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.unit.deploy.kubernetes.manifests import Object, Overlay, Workload

Broken = Callable[[Overlay], None]

LOCAL, MULTI, PRODUCTION = "local", "multi-replica-test", "production"


@dataclass(frozen=True)
class Control:
    """One way to break one rule in one overlay."""

    rule: str
    named: str
    """What a fault must say."""
    broken: Broken
    overlay: str = PRODUCTION

    @property
    def told(self) -> str:
        return f"{self.rule}-{self.named}-{self.overlay}"


# ---- ways to break things


def at(kind: str, name: str, *path: str | int, value: Any = None, gone: bool = False) -> Broken:
    """Set what is at a path of an object, or take it away."""

    def broken(overlay: Overlay) -> None:
        place: Any = overlay.the(kind, name)
        for step in path[:-1]:
            place = place[step]
        if gone:
            del place[path[-1]]
        else:
            place[path[-1]] = value

    return broken


def pod(kind: str, name: str, *path: str | int, value: Any = None, gone: bool = False) -> Broken:
    """The same in the pods' spec."""
    return at(kind, name, "spec", "template", "spec", *path, value=value, gone=gone)


def container(name: str, *path: str | int, value: Any = None, gone: bool = False) -> Broken:
    """The same in the container of a Deployment."""
    return pod("Deployment", name, "containers", 0, *path, value=value, gone=gone)


def without(kind: str, name: str) -> Broken:
    return lambda overlay: overlay.objects.remove(overlay.the(kind, name))


def with_one_more(of: Object) -> Broken:
    return lambda overlay: overlay.objects.append(copy.deepcopy(of))


def variable(name: str, variable: str, value: str) -> Broken:
    """Give the container of a Deployment a variable."""

    def broken(overlay: Overlay) -> None:
        entries = Workload(overlay.the("Deployment", name)).containers[0]["env"]
        entries[:] = [each for each in entries if each["name"] != variable]
        entries.append({"name": variable, "value": value})

    return broken


def twice(kind: str, name: str) -> Broken:
    return lambda overlay: overlay.objects.append(copy.deepcopy(overlay.the(kind, name)))


def policy(name: str, **spec: Any) -> Object:
    return {
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": "tally"},
        "spec": {"policyTypes": [each.capitalize() for each in spec if each != "podSelector"]}
        | spec,
    }


def secret(name: str) -> Object:
    return {"kind": "Secret", "metadata": {"name": name}, "stringData": {}}
