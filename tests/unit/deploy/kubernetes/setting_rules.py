"""Rules about what pods are told and run: settings, secrets, references, images, releases."""

from __future__ import annotations

import importlib.util
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final
from unittest import mock

from common import tracing
from common.settings import PREFIX, SECRETS_DIR, ServiceSettings, SettingsError, read
from deploy.kubernetes.secrets import local_secret_objects
from tests.unit.deploy.kubernetes.manifests import (
    LABEL,
    NAMESPACE,
    SETTINGS_OF,
    Object,
    Overlay,
    Workload,
    strings,
    told,
)
from tests.unit.deploy.kubernetes.rule import rule

MOUNTED: Final = "/etc/tally/secrets"
SECRETS: Final[dict[str, dict[str, str]]] = {
    each["metadata"]["name"]: each["stringData"] for each in local_secret_objects()
}
TRACING: Final = {
    *tracing.ENDPOINTS,
    *("OTEL_EXPORTER_OTLP_TIMEOUT", "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT"),
    *("OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG"),
    *("OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES"),
    *("OTEL_BSP_SCHEDULE_DELAY", "OTEL_BSP_EXPORT_TIMEOUT"),
    *("OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE"),
}
"""What pods may be told of OpenTelemetry: nothing that holds a secret, as headers do."""
CLUSTER_WIDE: Final = ("Namespace", "PriorityClass")
_CREDENTIAL: Final = re.compile(
    r"://[^/\s:@]*:[^/\s@]+@|-----BEGIN (?!CERTIFICATE-)|\b[0-9a-f]{32,}\b"
    r"|(?i:password|secret|token)\s*[=:]\s*\S"
)
_SECRET_NAME: Final = re.compile(r"PASSWORD$|SECRET(?!S_DIR)|TOKEN|_KEY$|DATABASE_URL$|REDIS_URL$")


def setting_names(settings_type: type[ServiceSettings]) -> set[str]:
    prefixes = (f"{PREFIX}{settings_type.service.upper()}_", PREFIX)
    fields = settings_type.model_fields
    # With their components: OpenTelemetry's, and whom the driver of PostgreSQL trusts.
    return {SECRETS_DIR, "PGSSLROOTCERT", *TRACING} | {
        f"{prefix}{name.upper()}" for prefix in prefixes for name in fields
    }


@rule
def variables_are_settings(overlay: Overlay) -> Iterator[str]:
    for each in overlay.servers + overlay.migrations:
        known = setting_names(SETTINGS_OF[each.service])
        for name in overlay.environment(each.containers[0]):
            if name not in known:
                yield f"{each.told}: {name} is no setting of {each.service}"


@rule
def settings_are_accepted(overlay: Overlay) -> Iterator[str]:
    """The service reads exactly what the pod would give it, files included."""
    for each in overlay.servers + overlay.migrations:
        environment = overlay.environment(each.containers[0])
        command = "migrate" if each in overlay.migrations else "serve"
        if environment.get(SECRETS_DIR) != MOUNTED:
            yield f"{each.told}: {SECRETS_DIR} is not {MOUNTED}"
        with TemporaryDirectory() as directory:
            for secret in secrets_at(each, MOUNTED):
                _lay_out(SECRETS.get(secret, {}), Path(directory))
            with mock.patch.dict(os.environ, environment | {SECRETS_DIR: directory}, clear=True):
                try:
                    read(SETTINGS_OF[each.service], "migrate" if command == "migrate" else "serve")
                    # Raises for a variable that is wrong; a migration does not look at them.
                    _ = command == "serve" and tracing.wanted()
                except SettingsError as error:
                    yield f"{each.told}: {error}"


def _lay_out(secret: dict[str, str], directory: Path) -> None:
    """As the kubelet does: links over a link to a directory, to change all files at once."""
    (directory / "..2026_01_02").mkdir(exist_ok=True)
    (directory / "..data").symlink_to("..2026_01_02")
    for key, value in secret.items():
        (directory / "..data" / key).write_text(value, encoding="utf-8")
        (directory / key).symlink_to(Path("..data", key))


@rule
def variables_are_given_once(overlay: Overlay) -> Iterator[str]:
    """Of two ConfigMaps, or one and the pod's own list, one would win without a word."""
    for each in overlay.servers + overlay.migrations:
        given = [entry["name"] for entry in each.containers[0].get("env", [])]
        for source in each.containers[0].get("envFrom", []):
            found = overlay.find("ConfigMap", source.get("configMapRef", {}).get("name", ""))
            given += (found or {}).get("data", {})
        for name, times in Counter(given).items():
            if times > 1:
                yield f"{each.told}: {name} is given {times} times"


def secrets_at(each: Workload, path: str) -> list[str]:
    """The Secrets whose files the first container sees at a path."""
    names = [
        mount["name"]
        for mount in each.containers[0].get("volumeMounts", [])
        if mount["mountPath"] == path
    ]
    return [
        volume["secret"]["secretName"]
        for volume in each.pod.get("volumes", [])
        if volume["name"] in names and "secret" in volume
    ]


@rule
def secrets_are_files_of_those_who_need_them(overlay: Overlay) -> Iterator[str]:
    for each in overlay.servers + overlay.migrations:
        kind = "owner" if each in overlay.migrations else "runtime"
        mounted = [one["secret"]["secretName"] for one in each.pod["volumes"] if "secret" in one]
        if mounted != [f"{each.service}-{kind}"]:
            yield f"{each.told}: mounts {mounted}, not only {each.service}-{kind}"


@rule
def secret_files_can_be_read_by_their_group_alone(overlay: Overlay) -> Iterator[str]:
    """They belong to root and to the pod's fsGroup, which the container's user has to be in."""
    for each in overlay.workloads:
        for volume in each.pod.get("volumes", []):
            if "secret" in volume and volume["secret"].get("defaultMode") != 0o440:
                yield f"{each.told}: the files of {volume['name']} are not 0440"
        context = each.pod.get("securityContext", {})
        if not context.get("fsGroup") or context["fsGroup"] != context.get("runAsGroup"):
            yield f"{each.told}: its fsGroup is not its user's group"


@rule
def secrets_are_not_in_manifests(overlay: Overlay) -> Iterator[str]:
    for secret in overlay.of_kind("Secret"):
        yield f"{told(secret)}: is rendered"
    for each in overlay.workloads:
        for container in each.containers:
            yield from _secrets_in_environment(overlay, each.told, container)
    for found in overlay.objects:
        for path, text in strings(found):
            if _CREDENTIAL.search(text):
                yield f"{told(found)}: {path} looks like a credential"


def _secrets_in_environment(overlay: Overlay, where: str, container: Object) -> Iterator[str]:
    for source in container.get("envFrom", []):
        if "secretRef" in source:
            yield f"{where}: takes its environment from a Secret"
    for entry in container.get("env", []):
        if "secretKeyRef" in entry.get("valueFrom", {}):
            yield f"{where}: {entry['name']} comes from a Secret"
    for name in overlay.environment(container):
        if _SECRET_NAME.search(name):
            yield f"{where}: {name} is a secret, in the environment"


@rule
def references_exist(overlay: Overlay) -> Iterator[str]:
    for each in overlay.workloads:
        secrets = {f"{each.service}-runtime", f"{each.service}-owner"}
        if overlay.name != "production":
            secrets |= SECRETS.keys()
        volumes = {volume["name"]: volume for volume in each.pod.get("volumes", [])}
        for volume in volumes.values():
            secret = volume.get("secret", {}).get("secretName")
            if secret is not None and secret not in secrets:
                yield f"{each.told}: nobody makes the Secret {secret}"
            for item in volume.get("secret", {}).get("items", []):
                if item["key"] not in SECRETS.get(secret, {}):
                    yield f"{each.told}: the Secret {secret} has no {item['key']}"
            wanted = volume.get("configMap", {}).get("name")
            if wanted is not None and overlay.find("ConfigMap", wanted) is None:
                yield f"{each.told}: the ConfigMap {wanted} does not exist"
        yield from _inside(overlay, each, set(volumes))


def _inside(overlay: Overlay, each: Workload, volumes: set[str]) -> Iterator[str]:
    claims = {one["metadata"]["name"] for one in each.spec.get("volumeClaimTemplates", [])}
    for container in each.containers:
        for source in container.get("envFrom", []):
            wanted = source.get("configMapRef", {}).get("name")
            if overlay.find("ConfigMap", wanted or "") is None:
                yield f"{each.told}: the ConfigMap {wanted} does not exist"
        mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
        for name in mounted ^ (volumes | claims):
            yield f"{each.told}: {name} is a mount without a volume, or the other way round"
    priority = each.pod.get("priorityClassName")
    if priority and overlay.find("PriorityClass", priority) is None:
        yield f"{each.told}: the PriorityClass {priority} does not exist"


@rule
def config_maps_are_used(overlay: Overlay) -> Iterator[str]:
    used = {text for each in overlay.workloads for _, text in strings(each.pod)}
    for each in overlay.of_kind("ConfigMap"):
        if each["metadata"]["name"] not in used:
            yield f"{told(each)}: nobody reads it"


@rule
def images_are_pinned(overlay: Overlay) -> Iterator[str]:
    for each in overlay.workloads:
        for container in each.containers:
            image = container["image"]
            version = re.fullmatch(r".+(:(?P<tag>[\w.-]+)|@sha256:[0-9a-f]{64})", image)
            if version is None or version["tag"] == "latest":
                yield f"{each.told}: the image {image} may be another tomorrow"
            if container.get("imagePullPolicy") != "IfNotPresent":
                yield f"{each.told}: pulls an image that cannot have changed"
            own = image.rsplit("/", 1)[-1].split(":")[0]
            if each in overlay.servers + overlay.migrations and own != "tally":
                yield f"{each.told}: runs {own}, not tally"


@rule
def versions_are_one(overlay: Overlay) -> Iterator[str]:
    images = set()
    for each in overlay.servers + overlay.migrations:
        images.add(each.containers[0]["image"])
        version = each.containers[0]["image"].rpartition(":")[2]
        if each.labels.get(f"{LABEL}version") != version:
            yield f"{each.told}: is not labelled {version}"
    if len(images) != 1:
        yield f"migrations and servers: are of several releases, {sorted(images)}"


@rule
def commands_are_modules(overlay: Overlay) -> Iterator[str]:
    for each in overlay.servers + overlay.migrations:
        wanted = ["python", "-m", f"{each.service}_service"]
        wanted += ["migrate"] if each in overlay.migrations else []
        if each.containers[0].get("command") != wanted or each.containers[0].get("args"):
            yield f"{each.told}: does not run {' '.join(wanted)}"
    for each in overlay.workloads:
        command = each.containers[0].get("command", [])
        if command[:2] == ["python", "-m"] and not _runs(command[2]):
            yield f"{each.told}: there is no module {command[2]}"


def _runs(module: str) -> bool:
    try:
        return importlib.util.find_spec(f"{module}.__main__") is not None
    except ModuleNotFoundError:
        return False


@rule
def replicas_know_their_names(overlay: Overlay) -> Iterator[str]:
    for each in overlay.servers:
        entries = {one["name"]: one for one in each.containers[0].get("env", [])}
        field = entries.get("TALLY_REPLICA", {}).get("valueFrom", {}).get("fieldRef", {})
        if field.get("fieldPath") != "metadata.name":
            yield f"{each.told}: TALLY_REPLICA is not the pod's name"


@rule
def namespace_is_tally(overlay: Overlay) -> Iterator[str]:
    if overlay.find("Namespace", NAMESPACE) is None:
        yield f"Namespace/{NAMESPACE}: is not made"
    for each in overlay.objects:
        if each["kind"] not in CLUSTER_WIDE and each["metadata"].get("namespace") != NAMESPACE:
            yield f"{told(each)}: is not in {NAMESPACE}"


@rule
def names_are_unique(overlay: Overlay) -> Iterator[str]:
    seen: set[str] = set()
    for each in overlay.objects:
        if told(each) in seen:
            yield f"{told(each)}: is there twice"
        seen.add(told(each))
