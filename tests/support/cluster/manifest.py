"""Parses a rendered overlay strictly: anything unknown is an error that names the object."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, get_args

import yaml

Object = dict[str, Any]
Kind = Literal["startup", "readiness", "liveness"]
"""Of a probe."""

IGNORED_KINDS: Final = frozenset(
    {"Namespace", "ServiceAccount", "NetworkPolicy", "PodDisruptionBudget"}
)
"""Kinds that processes cannot simulate; the tests of the policies check them."""
KINDS: Final = IGNORED_KINDS | {
    *("ConfigMap", "Secret", "Service", "Deployment", "StatefulSet", "Job")
}


class ManifestError(Exception):
    """The manifest is inconsistent. The text names the object."""


@dataclass(frozen=True)
class Probe:
    """One probe, with Kubernetes' defaults. Times in seconds."""

    kind: Literal["grpc", "tcpSocket", "httpGet"]
    port: int
    service: str = ""
    """grpc: the name of the service in the health request."""
    path: str = "/"
    """httpGet: the path of the request."""
    initial_delay_s: float = 0.0
    period_s: float = 10.0
    timeout_s: float = 1.0
    failures_max: int = 3
    successes: int = 1


@dataclass(frozen=True)
class Mount:
    """A volume in a container."""

    path: str
    volume: Object


@dataclass(frozen=True)
class Container:
    """The one container of a pod template."""

    name: str
    image: str
    command: tuple[str, ...]
    """``command`` and ``args`` together."""
    env: tuple[Object, ...]
    env_from: tuple[Object, ...]
    ports: Mapping[str, int]
    mounts: tuple[Mount, ...]
    probes: Mapping[Kind, Probe]
    pre_stop_s: float


@dataclass(frozen=True)
class User:
    """The user and group of a pod's container, and the group of its volumes."""

    uid: int
    gid: int
    fs_group: int


ROOT: Final = User(0, 0, 0)


@dataclass(frozen=True)
class Workload:
    """A Deployment, StatefulSet or Job."""

    kind: str
    name: str
    namespace: str
    labels: Mapping[str, str]
    """The labels of its pods."""
    replicas: int
    container: Container
    grace_s: float
    min_ready_s: float = 0.0
    max_surge: int = 1
    max_unavailable: int = 0
    user: User = ROOT

    @property
    def title(self) -> str:
        """The name in messages."""
        return f"{self.kind} {self.name}"

    @property
    def program(self) -> str:
        """The last part of the image's name without its tag: ``postgres`` of ``postgres:18``."""
        return self.container.image.rpartition("/")[2].partition("@")[0].partition(":")[0]


@dataclass(frozen=True)
class Service:
    """A Service: a name for the ready pods that it selects."""

    name: str
    namespace: str
    selector: Mapping[str, str]
    headless: bool
    ports: Mapping[int, int]
    """The port of the pods, by port of the Service."""

    def selects(self, labels: Mapping[str, str]) -> bool:
        return self.selector.items() <= labels.items()


@dataclass
class Manifest:
    """A whole overlay."""

    workloads: dict[str, Workload] = field(default_factory=dict)
    jobs: list[Workload] = field(default_factory=list)
    services: dict[str, Service] = field(default_factory=dict)
    config_maps: dict[str, Mapping[str, str]] = field(default_factory=dict)
    secrets: dict[str, Mapping[str, str]] = field(default_factory=dict)


def load(path: Path) -> list[Object]:
    """The objects of a rendered overlay."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return [each for each in yaml.load_all(path.read_text(), loader) if each is not None]


def read(objects: Iterable[Object]) -> Manifest:
    """The manifest of these objects. Raises ManifestError for an object it cannot simulate."""
    manifest = Manifest()
    services = []
    for each in objects:
        kind, name = each["kind"], each["metadata"]["name"]
        if kind not in KINDS:
            raise ManifestError(f"{kind} {name}: a kind that the test cluster does not know")
        if kind == "ConfigMap":
            manifest.config_maps[name] = each.get("data") or {}
        elif kind == "Secret":
            manifest.secrets[name] = each.get("stringData") or {}
        elif kind == "Service":
            services.append(each)
        elif kind not in IGNORED_KINDS:
            workload = _workload(each)
            if kind == "Job":
                manifest.jobs.append(workload)
            else:
                manifest.workloads[name] = workload
    for each in services:
        service = _service(each, manifest.workloads.values())
        manifest.services[service.name] = service
    return manifest


def _workload(each: Object) -> Workload:
    kind, name, spec = each["kind"], each["metadata"]["name"], each["spec"]
    title = f"{kind} {name}"
    labels = spec["template"]["metadata"].get("labels", {})
    wanted = (spec.get("selector") or {}).get("matchLabels", {})
    if not wanted.items() <= labels.items():
        raise ManifestError(f"{title}: its selector does not select its own pods")
    pod = spec["template"]["spec"]
    if len(pod["containers"]) != 1 or pod.get("initContainers"):
        raise ManifestError(f"{title}: only pods of one container are supported")
    rolling = (spec.get("strategy") or {}).get("rollingUpdate") or {}
    surge, unavailable = rolling.get("maxSurge", 1), rolling.get("maxUnavailable", 0)
    if not (isinstance(surge, int) and isinstance(unavailable, int)):
        raise ManifestError(f"{title}: maxSurge and maxUnavailable must be numbers of pods")
    user = pod.get("securityContext") or {}
    gid = user.get("runAsGroup", ROOT.gid)
    return Workload(
        kind=kind,
        name=name,
        namespace=each["metadata"].get("namespace", "default"),
        labels=labels,
        replicas=spec.get("replicas", 1),
        container=_container(title, pod["containers"][0], pod.get("volumes") or []),
        grace_s=pod.get("terminationGracePeriodSeconds", 30),
        min_ready_s=spec.get("minReadySeconds", 0),
        max_surge=surge,
        max_unavailable=unavailable,
        user=User(user.get("runAsUser", ROOT.uid), gid, user.get("fsGroup", gid)),
    )


def _container(title: str, spec: Object, volumes: list[Object]) -> Container:
    by_name = {volume["name"]: volume for volume in volumes}
    mounts = []
    for mount in spec.get("volumeMounts") or []:
        # The claims of a StatefulSet are not in its volumes; only the embedded servers have some.
        volume = by_name.get(mount["name"], {"name": mount["name"], "claim": {}})
        mounts.append(Mount(mount["mountPath"].rstrip("/"), volume))
    ports = {port.get("name", ""): port["containerPort"] for port in spec.get("ports") or []}
    return Container(
        name=spec["name"],
        image=spec["image"],
        command=(*(spec.get("command") or []), *(spec.get("args") or [])),
        env=tuple(spec.get("env") or []),
        env_from=tuple(spec.get("envFrom") or []),
        ports=ports,
        mounts=tuple(mounts),
        probes={
            kind: _probe(f"{title}: {kind}Probe", spec[f"{kind}Probe"], ports)
            for kind in get_args(Kind)
            # Only PostgreSQL and Redis, which are replaced, have probes that run a program.
            if f"{kind}Probe" in spec and "exec" not in spec[f"{kind}Probe"]
        },
        pre_stop_s=_pre_stop_s(title, spec),
    )


def _pre_stop_s(title: str, spec: Object) -> float:
    hook = (spec.get("lifecycle") or {}).get("preStop")
    if hook is None:
        return 0.0
    if set(hook) != {"sleep"}:
        raise ManifestError(f"{title}: a preStop hook that is not `sleep`")
    return float(hook["sleep"]["seconds"])


def _probe(where: str, spec: Object, ports: Mapping[str, int]) -> Probe:
    kinds = [kind for kind in ("grpc", "tcpSocket", "httpGet") if kind in spec]
    if len(kinds) != 1:
        raise ManifestError(f"{where}: neither grpc, tcpSocket nor httpGet")
    (kind,) = kinds
    action = spec[kind]
    port = ports.get(action["port"], action["port"])
    if port not in ports.values():
        raise ManifestError(f"{where}: port {port} is none of the container's {dict(ports)}")
    return Probe(
        kind=kind,
        port=port,
        service=action.get("service", ""),
        path=action.get("path", "/"),
        initial_delay_s=spec.get("initialDelaySeconds", 0),
        period_s=spec.get("periodSeconds", 10),
        timeout_s=spec.get("timeoutSeconds", 1),
        failures_max=spec.get("failureThreshold", 3),
        successes=spec.get("successThreshold", 1),
    )


def _service(each: Object, workloads: Iterable[Workload]) -> Service:
    name, spec = each["metadata"]["name"], each["spec"]
    namespace = each["metadata"].get("namespace", "default")
    selector = spec.get("selector") or {}
    selected = [
        workload
        for workload in workloads
        if selector
        and selector.items() <= workload.labels.items()
        # A Service selects pods of its own namespace only.
        and workload.namespace == namespace
    ]
    if not selected:
        raise ManifestError(f"Service {name}: its selector {selector} selects no pod")
    ports: dict[int, int] = {}
    for port in spec["ports"]:
        wanted = port.get("targetPort", port["port"])
        for workload in selected:
            known = workload.container.ports
            target = known.get(wanted, wanted)
            if target not in known.values():
                raise ManifestError(f"Service {name}: {workload.title} has no port {wanted}")
            ports[port["port"]] = target
    headless = spec.get("clusterIP") == "None"
    if headless and any(port != target for port, target in ports.items()):
        # DNS has addresses only: a headless Service cannot map a port to another.
        raise ManifestError(f"Service {name}: headless, and its ports are not those of the pods")
    return Service(
        name=name, namespace=namespace, selector=selector, headless=headless, ports=ports
    )
