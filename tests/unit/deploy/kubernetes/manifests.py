"""Rendered overlays as objects: how a rule selects objects and reads their fields."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from typing import Any, Final

import yaml

from common.environment import prefixes
from common.settings import ServiceSettings
from deploy.kubernetes.manifests import rendered
from deploy.reference import SETTINGS

Object = dict[str, Any]
Labels = dict[str, str]

LOCAL, MULTI, PRODUCTION = "local", "multi-replica-test", "production"
NAMESPACE: Final = "tally"
SETTINGS_OF: Final[dict[str, type[ServiceSettings]]] = {each.service: each for each in SETTINGS}
SERVICES: Final = tuple(SETTINGS_OF)
PORTS: Final = {"balance": 50051, "coupon": 50052, "order": 50053, "payment": 50054}
PEER_PORTS: Final = {"balance": 50061, "coupon": 50062, "payment": 50064}
PROBE_PORT: Final = 50050
"""With TLS, peers and probes have ports of their own."""
METRICS_PORT: Final = 9464
WITH_PODS: Final = ("Deployment", "StatefulSet", "DaemonSet", "Job", "CronJob")
LABEL: Final = "app.kubernetes.io/"
GONE: Final = object()
"""The value that removes a field or an object."""
_SHORT: Final = {
    "pod": "spec.template.spec",
    "container": "spec.template.spec.containers[0]",
    "env": "spec.template.spec.containers[0].env",
}
_STEP: Final = re.compile(r"\[([^\]]*)\]|([^.\[\]]+)")
_MERGE_KEYS: Final = ("name", "mountPath", "topologyKey")


@dataclass(frozen=True)
class Item:
    """One object of an overlay."""

    overlay: Overlay
    raw: Object

    @property
    def kind(self) -> str:
        return str(self.raw["kind"])

    @property
    def name(self) -> str:
        return str(self.raw["metadata"]["name"])

    @property
    def title(self) -> str:
        return f"{self.kind}/{self.name}"

    def values(self, path: str) -> list[Any]:
        """Every value at a path; None for an absent field.

        ``[key]`` is a key that contains dots, or the item of a list with this index or merge key;
        ``[*]`` is every item. ``pod`` is the pod's spec, ``container`` each of its containers;
        ``setting`` is what a server reads.
        """
        if path.startswith("setting."):
            return [self.setting(path.removeprefix("setting."))]
        if path.startswith("container."):
            rest = path.removeprefix("container")
            inits = self.values(f"pod.initContainers[*]{rest}")
            return inits + self.values(f"pod.containers[*]{rest}")
        return list(_follow(self.raw, _steps(path)))

    def get(self, path: str, default: Any = None) -> Any:
        """The one value at a path, or the default for an absent field."""
        found = next(_follow(self.raw, _steps(path)), None)
        return default if found is None else found

    # ---- of objects that have a pod template

    @property
    def labels(self) -> Labels:
        """The labels of its pods."""
        labels: Labels = self.get("spec.template.metadata.labels", {})
        return labels

    @property
    def service(self) -> str:
        return self.labels.get(f"{LABEL}name", "")

    @property
    def component(self) -> str:
        return self.labels.get(f"{LABEL}component", "")

    @property
    def ports(self) -> dict[str, int]:
        return {each["name"]: each["containerPort"] for each in self.values("container.ports[*]")}

    @property
    def environment(self) -> dict[str, str]:
        """The variables of the container; the value of a fieldRef is ``field``."""
        found: dict[str, str] = {}
        for name in self.values("container.envFrom[*].configMapRef.name"):
            config_map = self.overlay.find("ConfigMap", name)
            found |= config_map.get("data", {}) if config_map else {}
        return found | {one["name"]: one.get("value", "field") for one in self.get("env", [])}

    def setting(self, field: str) -> str:
        """The value a server reads: its own variable, then the shared one, then the default."""
        for prefix in prefixes(self.service):
            if (given := self.environment.get(f"{prefix}{field.upper()}")) is not None:
                return given
        return str(SETTINGS_OF[self.service].model_fields[field].default)


@dataclass(frozen=True)
class Overlay:
    """The objects of one overlay."""

    name: str
    objects: list[Object]

    @property
    def items(self) -> list[Item]:
        return [Item(self, each) for each in self.objects]

    def of_kind(self, *kinds: str) -> list[Item]:
        return [Item(self, each) for each in self.objects if each["kind"] in kinds]

    def find(self, kind: str, name: str) -> Item | None:
        return next((each for each in self.of_kind(kind) if each.name == name), None)

    def the(self, title: str) -> Item:
        """The object ``Kind/name``; a ``*`` stands for the rest of a name."""
        return next(each for each in self.items if fnmatchcase(each.title, title))

    def has(self, title: str) -> bool:
        return any(fnmatchcase(each.title, title) for each in self.items)

    @property
    def workloads(self) -> list[Item]:
        return self.of_kind(*WITH_PODS)

    @property
    def has_tls(self) -> bool:
        """Whether it has the component ``tls``."""
        return any("TALLY_TLS_DIR" in each.environment for each in self.servers)

    def port_of_peers(self, service: str) -> int:
        """The port on which a service is called by the others."""
        return (PEER_PORTS if self.has_tls else PORTS)[service]

    @property
    def servers(self) -> list[Item]:
        """The Deployments of the four services."""
        return [each for each in self.workloads if each.component == "server"]

    @property
    def migrations(self) -> list[Item]:
        return [each for each in self.workloads if each.component == "migration"]

    def change(self, title: str, path: str, value: Any) -> None:
        """Set the value at a path of an object; with an empty path, remove or add the object."""
        if path:
            _put(self.the(title).raw, _steps(path), value)
        elif value is GONE:
            self.objects.remove(self.the(title).raw)
        else:
            self.objects.append(value)


def _steps(path: str) -> list[str]:
    full = re.sub(r"^\w+", lambda head: _SHORT.get(head[0], head[0]), path)
    return [key or word for key, word in _STEP.findall(full)]


def _follow(value: Any, steps: list[str]) -> Iterator[Any]:
    if not steps:
        yield value
        return
    step, *rest = steps
    if step == "*":
        for each in value or []:
            yield from _follow(each, rest)
    elif isinstance(value, list):
        index = _index(value, step)
        yield from _follow(None if index is None else value[index], rest)
    else:
        yield from _follow(value.get(step) if isinstance(value, dict) else None, rest)


def _index(values: list[Any], step: str) -> int | None:
    """The position of a list's item with this index or merge key."""
    if step.isdigit():
        return int(step) if int(step) < len(values) else None
    keys = (
        [each.get(key) for key in _MERGE_KEYS] if isinstance(each, dict) else [] for each in values
    )
    return next((index for index, found in enumerate(keys) if step in found), None)


def _put(place: Any, steps: list[str], value: Any) -> None:
    """Set or remove the value at a path; what is missing on the way is added."""
    step, *rest = steps
    key: Any = step
    if isinstance(place, list):
        key = _index(place, step)
        if key is None:
            place.append({"name": step})
            key = len(place) - 1
    if rest:
        if isinstance(place, dict):
            place.setdefault(key, {})
        _put(place[key], rest, value)
    elif value is GONE:
        del place[key]
    else:
        place[key] = value


def selects(selector: Object | None, labels: Labels) -> bool:
    """Whether a label selector matches. An empty one matches everything, None nothing."""
    if selector is None:
        return False
    terms = selector.get("matchExpressions", [])
    assert all(term["operator"] == "In" for term in terms), "the only operator in use"
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        labels.get(term["key"]) in term["values"] for term in terms
    )


def strings(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every string in an object, with its path."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from strings(inner, f"{path}.{key}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from strings(inner, f"{path}[{index}]")
    elif isinstance(value, str):
        yield path, value


def parse(name: str, text: str) -> Overlay:
    """The overlay of this YAML."""
    # The safe loader, in C where that is built.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return Overlay(name, [each for each in yaml.load_all(text, loader) if each])


@cache
def _as_json(overlay: str) -> str:
    text = rendered(overlay).read_text(encoding="utf-8")
    return json.dumps(parse(overlay, text).objects)


def load(overlay: str) -> Overlay:
    """A new copy of a rendered overlay, for a control changes its own."""
    return Overlay(overlay, json.loads(_as_json(overlay)))
