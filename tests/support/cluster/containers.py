"""Turns a container of the manifest into a process: its command, environment and mounted files.

The only substitutions: this interpreter for ``python``, the pod's address for 0.0.0.0, a directory
of the pod for each mount path, the cluster's DNS server for that of ``dns:///NAME:PORT``, and the
cluster IP for the name in ``http://NAME:PORT``. TMPDIR is the directory mounted at /tmp.
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
"""The environment of the images; nothing of the tests' own environment."""
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
    """The process of a container."""

    command: tuple[str, ...]
    environment: Mapping[str, str]
    directory: Path
    """The working directory: empty and not writable."""
    writable: tuple[Path, ...]
    user: User

    @property
    def confined(self) -> tuple[str | Path, ...]:
        """The command with the restrictions of a container (see confine.py)."""
        user = (str(self.user.uid), str(self.user.gid))
        return (sys.executable, "-I", "-S", CONFINE, *user, *self.writable, "--", *self.command)


@dataclass(frozen=True)
class Place:
    """The name, address and directory of a pod."""

    name: str
    address: str
    directory: Path


@dataclass(frozen=True)
class Builder:
    """Makes the processes of the manifest's containers. Raises ManifestError."""

    manifest: Manifest
    services: Services
    dns_host: str

    def process(self, workload: Workload, place: Place) -> Process:
        """The process of the workload's container at ``place``. Writes its mounted files."""
        container = workload.container
        title = f"{workload.title}, container {container.name}"
        paths = {
            mount.path: self._mounted(f"{title}, mount {mount.path}", mount, place, workload.user)
            for mount in container.mounts
        }
        given = dict(self._environment(title, workload, place))
        expanded = {
            name: self._substituted(f"{title}: {name}", _expanded(value, given), paths, place)
            for name, value in given.items()
        }
        if not container.command:
            raise ManifestError(f"{title}: no command")
        command = [
            self._substituted(f"{title}: command", _expanded(part, given), paths, place)
            for part in container.command
        ]
        if command[:2] != ["python", "-m"]:
            raise ManifestError(f"{title}: command {command[:2]} is not python -m MODULE")
        if command[2].endswith("_service"):
            _check_names(title, command[2], expanded, Path(expanded.get(SECRETS_DIR, os.devnull)))
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
        self, where: str, workload: Workload, place: Place
    ) -> Iterator[tuple[str, str]]:
        """The variables in Kubernetes' order: a later one replaces an earlier one."""
        for source in workload.container.env_from:
            if set(source) - {"configMapRef"}:
                raise ManifestError(f"{where}: envFrom {sorted(source)} is not a ConfigMap")
            yield from self._config_map(where, source["configMapRef"]["name"]).items()
        for variable in workload.container.env:
            name = variable["name"]
            yield name, self._value(f"{where}, env {name}", variable, workload, place)

    def _value(self, where: str, variable: Object, workload: Workload, place: Place) -> str:
        source = variable.get("valueFrom")
        if source is None:
            return str(variable.get("value", ""))
        if "configMapKeyRef" in source:
            wanted = source["configMapKeyRef"]
            data = self._config_map(where, wanted["name"])
            if wanted["key"] not in data:
                raise ManifestError(f"{where}: ConfigMap {wanted['name']} has no {wanted['key']}")
            return data[wanted["key"]]
        fields = {
            "metadata.name": place.name,
            "metadata.namespace": workload.namespace,
            "status.podIP": place.address,
        }
        path = (source.get("fieldRef") or {}).get("fieldPath")
        if path not in fields:
            raise ManifestError(f"{where}: a source that is not known: {source}")
        return fields[path]

    def _config_map(self, where: str, name: str) -> Mapping[str, str]:
        if name not in self.manifest.config_maps:
            raise ManifestError(f"{where}: there is no ConfigMap {name}")
        return self.manifest.config_maps[name]

    def _mounted(self, where: str, mount: Mount, place: Place, user: User) -> Path:
        """The directory of a mount, with its files as the kubelet writes them.

        Each is a link through ``..data``, which the kubelet replaces when they change.
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
        for name, text in self._files(where, mount.volume).items():
            (written / name).touch(mode=0o600)
            (written / name).write_text(text)
            (written / name).chmod(source.get("defaultMode", DEFAULT_MODE))
            _give(written / name, ROOT.uid, user.fs_group)
            (directory / name).symlink_to(f"..data/{name}")
        return directory

    def _files(self, where: str, volume: Object) -> Mapping[str, str]:
        if "secret" in volume:
            source, kind, known = volume["secret"], "Secret", self.manifest.secrets
            name = source["secretName"]
        elif "configMap" in volume:
            source, kind, known = volume["configMap"], "ConfigMap", self.manifest.config_maps
            name = source["name"]
        else:
            raise ManifestError(f"{where}: a volume that is not known: {sorted(volume)}")
        if name not in known:
            raise ManifestError(f"{where}: there is no {kind} {name}")
        items = source.get("items")
        if items is None:
            return known[name]
        missing = [item["key"] for item in items if item["key"] not in known[name]]
        if missing:
            raise ManifestError(f"{where}: {kind} {name} has no {missing[0]}")
        return {item["path"]: known[name][item["key"]] for item in items}

    def _substituted(self, where: str, value: str, paths: Mapping[str, Path], place: Place) -> str:
        for path, directory in paths.items():
            if value == path or value.startswith(f"{path}/"):
                return f"{directory}{value.removeprefix(path)}"
        value = _ANYWHERE.sub(place.address, value)
        for name, port in _DNS.findall(value):
            self.services.port(where, name, int(port))
        value = _DNS.sub(rf"dns://{self.dns_host}:{DNS_PORT}/\1:\2", value)

        def address(match: re.Match[str]) -> str:
            service = self.services.port(where, match[1], int(match[2]))
            if service.headless:
                raise ManifestError(f"{where}: {match[0]} names a headless Service")
            return f"http://{self.services.cluster_ip(service.name)}:{match[2]}"

        return value if _is_address(value) else _HTTP.sub(address, value)


def _is_address(url: str) -> bool:
    return re.match(r"http://[\d.]+:", url) is not None


def _expanded(value: str, given: Mapping[str, str]) -> str:
    """Expand ``$(NAME)`` of a known variable, and leave any other text, as Kubernetes does."""
    return _REFERENCE.sub(lambda match: given.get(match[1], match[0]), value)


def _give(path: Path, uid: int, gid: int) -> None:
    """Set the owner, as the kubelet does. Only root can, and only root runs pods as other users."""
    if os.geteuid() == 0:
        os.chown(path, uid, gid)


def _check_names(
    where: str, module: str, environment: Mapping[str, str], secrets_dir: Path
) -> None:
    """Refuse unknown settings: the service itself ignores a misspelt one."""
    try:
        importlib.import_module(f"{module}.__main__")
        settings = importlib.import_module(f"{module}.settings")
    except ModuleNotFoundError:
        raise ManifestError(f"{where}: command: there is no module {module}") from None
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
            raise ManifestError(f"{where}: {name} is no setting of {module}")
    if not secrets_dir.is_dir():
        raise ManifestError(f"{where}: {SECRETS_DIR} names no mounted directory")
    for file in secrets_dir.iterdir():
        if not file.name.startswith("..") and file.name.upper() not in known:
            raise ManifestError(f"{where}: the secret {file.name} is no setting of {module}")
