"""From a container of the manifest to a process: its command, environment and mounted files.

What is substituted, and nothing else: ``python`` by this interpreter, the address 0.0.0.0 by the
pod's, the paths of mounts by directories of the pod's own, ``dns:///NAME:PORT`` by the same name
asked of the cluster's DNS server, and ``http://NAME:PORT`` by the Service's own address. TMPDIR is
what is mounted at /tmp.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from common.settings import ServiceSettings
from deploy.local.plan import PROJECT
from tests.support.cluster.manifest import (
    ROOT,
    Manifest,
    ManifestError,
    Mount,
    Object,
    User,
    Workload,
)
from tests.support.cluster.network import DNS_PORT, Services

CONFINE: Final = Path(__file__).with_name("confine.py")
IMAGE_ENVIRONMENT: Final = {
    "HOME": "/nonexistent",
    "PATH": os.environ.get("PATH", os.defpath),
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONFAULTHANDLER": "1",
    "PYTHONPATH": f"{PROJECT}:{PROJECT / 'protos/gen'}",
    "PYTHONSAFEPATH": "1",
    "PYTHONUNBUFFERED": "1",
}
"""What the Dockerfile's images bring along; nothing of the tests' own environment."""
TMP: Final = "/tmp"
DEFAULT_MODE: Final = 0o644
WRITTEN: Final = "..2026_01_02_03_04_05.678901234"
PREFIX: Final = "TALLY_"
SECRETS_DIR: Final = "TALLY_SECRETS_DIR"
_REFERENCE: Final = re.compile(r"\$\(([A-Za-z_][A-Za-z0-9_.-]*)\)")
_DNS: Final = re.compile(r"dns:///([a-z0-9.-]+):(\d+)")
_HTTP: Final = re.compile(r"http://([a-z0-9.-]+):(\d+)")
_ANYWHERE: Final = re.compile(r"\b0\.0\.0\.0\b")


@dataclass(frozen=True)
class Process:
    """What is to be run for a container."""

    command: tuple[str, ...]
    environment: Mapping[str, str]
    directory: Path
    """Where it runs: empty, and not to be written to."""
    writable: tuple[Path, ...]
    user: User

    @property
    def confined(self) -> tuple[str | Path, ...]:
        """The command, kept to what a container may do (see confine.py)."""
        user = (str(self.user.uid), str(self.user.gid))
        return (sys.executable, "-I", "-S", CONFINE, *user, *self.writable, "--", *self.command)


@dataclass(frozen=True)
class Place:
    """Where a pod runs."""

    name: str
    address: str
    directory: Path


@dataclass(frozen=True)
class Builder:
    """Makes processes of the manifest's containers. Raises ManifestError."""

    manifest: Manifest
    services: Services
    dns_host: str

    def process(self, workload: Workload, place: Place) -> Process:
        """The process of the workload's container in the pod at ``place``, its files written."""
        container = workload.container
        told = f"{workload.told}, container {container.name}"
        paths = {
            mount.path: self._mounted(f"{told}, mount {mount.path}", mount, place, workload.user)
            for mount in container.mounts
        }
        given = dict(self._environment(told, workload, place))
        expanded = {
            name: self._substituted(f"{told}: {name}", _expanded(value, given), paths, place)
            for name, value in given.items()
        }
        if not container.command:
            raise ManifestError(f"{told}: no command")
        command = [
            self._substituted(f"{told}: command", _expanded(part, given), paths, place)
            for part in container.command
        ]
        if command[:2] != ["python", "-m"]:
            raise ManifestError(f"{told}: command {command[:2]} is not python -m MODULE")
        if command[2].endswith("_service"):
            _check_names(told, command[2], expanded, Path(expanded.get(SECRETS_DIR, os.devnull)))
        directory = place.directory / "root"
        directory.mkdir(mode=0o555, exist_ok=True)
        writable = [paths[each.path] for each in container.mounts if "emptyDir" in each.volume]
        temporary = {"TMPDIR": str(paths[TMP])} if TMP in paths else {}
        return Process(
            (sys.executable, *command[1:]),
            IMAGE_ENVIRONMENT | temporary | expanded,
            directory,
            tuple(writable),
            workload.user,
        )

    def _environment(
        self, told: str, workload: Workload, place: Place
    ) -> Iterator[tuple[str, str]]:
        """In Kubernetes' order: what comes later wins."""
        for source in workload.container.env_from:
            if set(source) - {"configMapRef"}:
                raise ManifestError(f"{told}: envFrom {sorted(source)} is not a ConfigMap")
            yield from self._config_map(told, source["configMapRef"]["name"]).items()
        for variable in workload.container.env:
            name = variable["name"]
            yield name, self._value(f"{told}, env {name}", variable, workload, place)

    def _value(self, told: str, variable: Object, workload: Workload, place: Place) -> str:
        source = variable.get("valueFrom")
        if source is None:
            return str(variable.get("value", ""))
        if "configMapKeyRef" in source:
            wanted = source["configMapKeyRef"]
            data = self._config_map(told, wanted["name"])
            if wanted["key"] not in data:
                raise ManifestError(f"{told}: ConfigMap {wanted['name']} has no {wanted['key']}")
            return data[wanted["key"]]
        fields = {
            "metadata.name": place.name,
            "metadata.namespace": workload.namespace,
            "status.podIP": place.address,
        }
        path = (source.get("fieldRef") or {}).get("fieldPath")
        if path not in fields:
            raise ManifestError(f"{told}: a source that is not known: {source}")
        return fields[path]

    def _config_map(self, told: str, name: str) -> Mapping[str, str]:
        if name not in self.manifest.config_maps:
            raise ManifestError(f"{told}: there is no ConfigMap {name}")
        return self.manifest.config_maps[name]

    def _mounted(self, told: str, mount: Mount, place: Place, user: User) -> Path:
        """The directory that stands for a mount, with its files as the kubelet lays them out.

        Each is a link by way of ``..data``, which the kubelet swaps when they change.
        """
        directory = place.directory / "volumes" / str(mount.volume["name"])
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if "emptyDir" in mount.volume:
            _give(directory, user.uid, user.fs_group)
            return directory
        written = directory / WRITTEN
        written.mkdir(mode=0o755)
        (directory / "..data").symlink_to(WRITTEN)
        source = mount.volume.get("secret") or mount.volume.get("configMap") or {}
        for name, text in self._files(told, mount.volume).items():
            (written / name).touch(mode=0o600)
            (written / name).write_text(text)
            (written / name).chmod(source.get("defaultMode", DEFAULT_MODE))
            _give(written / name, ROOT.uid, user.fs_group)
            (directory / name).symlink_to(f"..data/{name}")
        return directory

    def _files(self, told: str, volume: Object) -> Mapping[str, str]:
        if "secret" in volume:
            source, kind, known = volume["secret"], "Secret", self.manifest.secrets
            name = source["secretName"]
        elif "configMap" in volume:
            source, kind, known = volume["configMap"], "ConfigMap", self.manifest.config_maps
            name = source["name"]
        else:
            raise ManifestError(f"{told}: a volume that is not known: {sorted(volume)}")
        if name not in known:
            raise ManifestError(f"{told}: there is no {kind} {name}")
        items = source.get("items")
        if items is None:
            return known[name]
        missing = [item["key"] for item in items if item["key"] not in known[name]]
        if missing:
            raise ManifestError(f"{told}: {kind} {name} has no {missing[0]}")
        return {item["path"]: known[name][item["key"]] for item in items}

    def _substituted(self, told: str, value: str, paths: Mapping[str, Path], place: Place) -> str:
        for path, directory in paths.items():
            if value == path or value.startswith(f"{path}/"):
                return f"{directory}{value.removeprefix(path)}"
        value = _ANYWHERE.sub(place.address, value)
        for name, port in _DNS.findall(value):
            self.services.port(told, name, int(port))
        value = _DNS.sub(rf"dns://{self.dns_host}:{DNS_PORT}/\1:\2", value)

        def address(match: re.Match[str]) -> str:
            service = self.services.port(told, match[1], int(match[2]))
            if service.headless:
                raise ManifestError(f"{told}: {match[0]} names a headless Service")
            return f"http://{self.services.cluster_ip(service.name)}:{match[2]}"

        return value if _is_address(value) else _HTTP.sub(address, value)


def _is_address(url: str) -> bool:
    return re.match(r"http://[\d.]+:", url) is not None


def _expanded(value: str, given: Mapping[str, str]) -> str:
    """As Kubernetes: ``$(NAME)`` of a known variable, any other text stays as it is."""
    return _REFERENCE.sub(lambda match: given.get(match[1], match[0]), value)


def _give(path: Path, uid: int, gid: int) -> None:
    """As the kubelet gives it to a pod; whoever is not root cannot, and runs the pod itself."""
    if os.geteuid() == 0:
        os.chown(path, uid, gid)


def _check_names(told: str, module: str, environment: Mapping[str, str], secrets_dir: Path) -> None:
    """Refuse settings that the service does not have: it would not miss what is misspelt."""
    try:
        importlib.import_module(f"{module}.__main__")
        settings = importlib.import_module(f"{module}.settings")
    except ModuleNotFoundError:
        raise ManifestError(f"{told}: command: there is no module {module}") from None
    (settings_type,) = (
        each
        for each in vars(settings).values()
        if isinstance(each, type) and issubclass(each, ServiceSettings) and each.service
    )
    known = {SECRETS_DIR}
    for field in settings_type.model_fields:
        known |= {f"{PREFIX}{part}{field}".upper() for part in ("", f"{settings_type.service}_")}
    for name in environment:
        if name.startswith(PREFIX) and name not in known:
            raise ManifestError(f"{told}: {name} is no setting of {module}")
    if not secrets_dir.is_dir():
        raise ManifestError(f"{told}: {SECRETS_DIR} names no mounted directory")
    for file in secrets_dir.iterdir():
        if not file.name.startswith("..") and file.name.upper() not in known:
            raise ManifestError(f"{told}: the secret {file.name} is no setting of {module}")
