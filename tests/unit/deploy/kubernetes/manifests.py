"""The rendered overlays as objects, with the few questions that rules ask of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import yaml

from common.environment import prefixes
from common.settings import ServiceSettings
from deploy.kubernetes.manifests import rendered
from deploy.reference import SETTINGS

Object = dict[str, Any]

NAMESPACE: Final = "tally"
SETTINGS_OF: Final[dict[str, type[ServiceSettings]]] = {each.service: each for each in SETTINGS}
SERVICES: Final = tuple(SETTINGS_OF)
PORTS: Final = {"balance": 50051, "coupon": 50052, "order": 50053, "payment": 50054}
METRICS_PORT: Final = 9464
WITH_PODS: Final = ("Deployment", "StatefulSet", "DaemonSet", "Job", "CronJob")
LABEL: Final = "app.kubernetes.io/"


@dataclass(frozen=True)
class Workload:
    """An object that makes pods."""

    raw: Object

    @property
    def kind(self) -> str:
        return str(self.raw["kind"])

    @property
    def name(self) -> str:
        return str(self.raw["metadata"]["name"])

    @property
    def told(self) -> str:
        return f"{self.kind}/{self.name}"

    @property
    def spec(self) -> Object:
        spec: Object = self.raw["spec"]
        return spec

    @property
    def template(self) -> Object:
        template: Object = self.spec["template"]
        return template

    @property
    def pod(self) -> Object:
        pod: Object = self.template["spec"]
        return pod

    @property
    def labels(self) -> dict[str, str]:
        labels: dict[str, str] = self.template["metadata"]["labels"]
        return labels

    @property
    def service(self) -> str:
        return self.labels.get(f"{LABEL}name", "")

    @property
    def component(self) -> str:
        return self.labels.get(f"{LABEL}component", "")

    @property
    def containers(self) -> list[Object]:
        return [*self.pod.get("initContainers", []), *self.pod["containers"]]

    @property
    def ports(self) -> dict[str, int]:
        return {
            port["name"]: port["containerPort"]
            for container in self.containers
            for port in container.get("ports", [])
        }


@dataclass(frozen=True)
class Overlay:
    """One overlay as rendered."""

    name: str
    objects: list[Object]

    def of_kind(self, *kinds: str) -> list[Object]:
        return [each for each in self.objects if each["kind"] in kinds]

    def find(self, kind: str, name: str) -> Object | None:
        found = (each for each in self.of_kind(kind) if each["metadata"]["name"] == name)
        return next(found, None)

    def the(self, kind: str, name: str) -> Object:
        """The object; a name that ends in ``*`` is the beginning of one."""
        for each in self.of_kind(kind):
            if re.fullmatch(re.escape(name).replace(r"\*", ".*"), each["metadata"]["name"]):
                return each
        raise LookupError(f"{self.name} has no {kind}/{name}")

    @property
    def workloads(self) -> list[Workload]:
        return [Workload(each) for each in self.of_kind(*WITH_PODS)]

    @property
    def servers(self) -> list[Workload]:
        """The Deployments of the four services."""
        return [each for each in self.workloads if each.component == "server"]

    @property
    def migrations(self) -> list[Workload]:
        return [each for each in self.workloads if each.component == "migration"]

    @property
    def lasting(self) -> list[Workload]:
        """Everything that runs for ever."""
        return [each for each in self.workloads if each.kind not in ("Job", "CronJob")]

    def environment(self, container: Object) -> dict[str, str]:
        """The variables of a container as it gets them; what a fieldRef gives is ``field``."""
        found: dict[str, str] = {}
        for source in container.get("envFrom", []):
            reference = source.get("configMapRef", {}).get("name", "")
            held = self.find("ConfigMap", reference)
            found |= (held or {}).get("data", {})
        for entry in container.get("env", []):
            found[entry["name"]] = entry.get("value", "field")
        return found

    def setting(self, workload: Workload, field: str) -> str:
        """What a server reads: its own variable before that of all services, then the default."""
        environment = self.environment(workload.containers[0])
        for prefix in prefixes(workload.service):
            if (given := environment.get(f"{prefix}{field.upper()}")) is not None:
                return given
        return str(SETTINGS_OF[workload.service].model_fields[field].default)

    def replicas_max(self, workload: Workload) -> int:
        for scaler in self.of_kind("HorizontalPodAutoscaler"):
            target = scaler["spec"]["scaleTargetRef"]
            if (target["kind"], target["name"]) == (workload.kind, workload.name):
                return int(scaler["spec"]["maxReplicas"])
        return int(workload.spec.get("replicas", 1))


def told(each: Object) -> str:
    return f"{each['kind']}/{each['metadata']['name']}"


def selects(selector: Object | None, labels: dict[str, str]) -> bool:
    """Whether a label selector matches; an empty one matches everything, None nothing."""
    if selector is None:
        return False
    for key, value in selector.get("matchLabels", {}).items():
        if labels.get(key) != value:
            return False
    for term in selector.get("matchExpressions", []):
        key, operator = term["key"], term["operator"]
        held = {
            "In": labels.get(key) in term.get("values", []),
            "NotIn": labels.get(key) not in term.get("values", []),
            "Exists": key in labels,
            "DoesNotExist": key not in labels,
        }[operator]
        if not held:
            return False
    return True


def strings(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every string in an object, with the path to it."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from strings(inner, f"{path}.{key}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from strings(inner, f"{path}[{index}]")
    elif isinstance(value, str):
        yield path, value


@cache
def _as_json(overlay: str) -> str:
    """Every test reads an overlay of its own, and YAML takes its time."""
    # The loader is the safe one, in C where that is built.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    objects = yaml.load_all(rendered(overlay).read_text(encoding="utf-8"), loader)
    return json.dumps([each for each in objects if each])


def load(overlay: str) -> Overlay:
    """A copy of one's own: controls break theirs."""
    return Overlay(overlay, json.loads(_as_json(overlay)))
