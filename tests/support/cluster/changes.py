"""The changes of a test to the manifest: its size, its times, the latency of its gateway."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tests.support.cluster.manifest import ManifestError, Object


@dataclass(frozen=True)
class Changes:
    """Changes of copies of the objects. Each object and setting must exist."""

    replicas: Mapping[str, int] = field(default_factory=dict)
    """The number of pods, by Deployment."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Values of settings, in every ConfigMap that has them."""
    arguments: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """More arguments of the container's command, by Deployment."""
    environment: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """More variables of the container, by Deployment."""
    min_ready_s: int | None = None
    """minReadySeconds of every Deployment that sets it."""

    def applied_to(self, objects: Sequence[Object]) -> list[Object]:
        """The changed objects. Raises ManifestError for a missing object or setting."""
        changed = copy.deepcopy(list(objects))
        specs = {each["metadata"]["name"]: each["spec"] for each in _of(changed, "Deployment")}
        for name in {*self.replicas, *self.arguments, *self.environment} - set(specs):
            raise ManifestError(f"there is no Deployment {name} to change")
        for name, count in self.replicas.items():
            specs[name]["replicas"] = count
        for name, arguments in self.arguments.items():
            (container,) = specs[name]["template"]["spec"]["containers"]
            container.setdefault("args", []).extend(arguments)
        for name, variables in self.environment.items():
            (container,) = specs[name]["template"]["spec"]["containers"]
            container["env"] += [{"name": each, "value": variables[each]} for each in variables]
        for spec in specs.values():
            if self.min_ready_s is not None and "minReadySeconds" in spec:
                spec["minReadySeconds"] = self.min_ready_s
        self._set_settings(_of(changed, "ConfigMap"))
        return changed

    def _set_settings(self, config_maps: Sequence[Object]) -> None:
        for name, value in self.settings.items():
            holders = [each["data"] for each in config_maps if name in (each.get("data") or {})]
            if not holders:
                raise ManifestError(f"no ConfigMap has {name}")
            for data in holders:
                data[name] = value


def _of(objects: Sequence[Object], kind: str) -> list[Object]:
    return [each for each in objects if each["kind"] == kind]
