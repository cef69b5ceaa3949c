"""Rules about settings and secrets: each variable is known and accepted, each secret is a file."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final
from unittest import mock

from common import tracing
from common.environment import PREFIX, SECRETS_DIR, SettingsError
from common.settings import ServiceSettings, read
from deploy.kubernetes.secrets import local_secret_objects
from tests.unit.deploy.kubernetes.engine import (
    OBJECTS,
    OWN,
    SERVERS,
    WORKLOADS,
    Check,
    Must,
    Rule,
    added,
    bad,
    rule,
)
from tests.unit.deploy.kubernetes.manifests import (
    GONE,
    LOCAL,
    PRODUCTION,
    SETTINGS_OF,
    Item,
    Overlay,
    strings,
)

MOUNTED: Final = "/etc/tally/secrets"
SECRETS: Final[dict[str, dict[str, str]]] = {
    each["metadata"]["name"]: each["stringData"] for each in local_secret_objects()
}


def secret_values(overlay: Overlay, name: str) -> dict[str, str]:
    """The keys and values of a Secret. In production, URLs verify their servers."""
    values = SECRETS.get(name, {})
    if overlay.name != PRODUCTION:
        return values
    return {
        key: f"{value}?sslmode=verify-full"
        if key.endswith("DATABASE_URL")
        else value.replace("redis://", "rediss://")
        for key, value in values.items()
    }


TRACING: Final = {
    *tracing.ENDPOINTS,
    *("OTEL_EXPORTER_OTLP_TIMEOUT", "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT"),
    *("OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG"),
    *("OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES"),
    *("OTEL_BSP_SCHEDULE_DELAY", "OTEL_BSP_EXPORT_TIMEOUT"),
    *("OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE"),
}
"""The OpenTelemetry variables a pod may have: none that holds a secret, as headers do."""
SECRET_OF: Final = "pod.volumes[secrets].secret.secretName"
_CREDENTIAL: Final = re.compile(
    r"://[^/\s:@]*:[^/\s@]+@|-----BEGIN (?!CERTIFICATE-)|\b[0-9a-f]{32,}\b"
    r"|(?i:password|secret|token)\s*[=:]\s*\S"
)
_SECRET_NAME: Final = re.compile(
    r"PASSWORD$|SECRET(?!S_DIR)|TOKEN(?!_FILE$)|_KEY$|DATABASE_URL$|REDIS_URL$"
)


def setting_names(settings_type: type[ServiceSettings]) -> set[str]:
    """The variables that a service reads."""
    prefixes = (f"{PREFIX}{settings_type.service.upper()}_", PREFIX)
    # With their components: OpenTelemetry's, the certificate for PostgreSQL's driver, gRPC's log.
    return {SECRETS_DIR, "PGSSLROOTCERT", "GRPC_VERBOSITY", *TRACING} | {
        f"{prefix}{name.upper()}" for prefix in prefixes for name in settings_type.model_fields
    }


def secrets_of(each: Item) -> list[str]:
    return sorted(one for one in each.values("pod.volumes[*].secret.secretName") if one)


@rule(
    OWN,
    bad("8", "env[TALLY_POOL_SIZES].value", says="TALLY_POOL_SIZES is no setting"),
    bad("8", "env[TALLY_ORDER_PAY_WITHIN_S].value", "Deployment/balance", "is no setting"),
    bad("key=x", "env[OTEL_EXPORTER_OTLP_HEADERS].value", says="OTLP_HEADERS is no setting"),
    bad("eight", "env[TALLY_POOL_SIZE].value", says="TALLY_POOL_SIZE"),
    bad("order-owner", SECRET_OF, says="TALLY_ORDER_DATABASE_URL"),
)
def settings_are_known_and_accepted(each: Item) -> Iterator[str]:
    """The service reads what the pod gives it; a misspelt variable leaves the default in force."""
    settings_type = SETTINGS_OF[each.service]
    for name in sorted(each.environment.keys() - setting_names(settings_type)):
        yield f"{name} is no setting"
    migrating = each.component == "migration"
    with TemporaryDirectory() as directory:
        for secret in secrets_of(each):
            for key, value in secret_values(each.overlay, secret).items():
                Path(directory, key).write_text(value, encoding="utf-8")
        with mock.patch.dict(os.environ, each.environment | {SECRETS_DIR: directory}, clear=True):
            try:
                read(settings_type, "migrate" if migrating else "serve")
                if not migrating:
                    # Raises for a wrong variable.
                    tracing.wanted()
            except SettingsError as error:
                yield str(error)


@rule(
    OWN,
    bad("9", "env[TALLY_POOL_SIZE].value"),
    bad("9", "data.TALLY_GRACE_S", "ConfigMap/payment-settings*", "Deployment/payment"),
)
def variables_are_given_once(each: Item) -> list[str]:
    """Of two ConfigMaps, or of one and the pod's own list, one wins without an error."""
    given = each.values("env[*].name")
    for name in each.values("container.envFrom[*].configMapRef.name"):
        found = each.overlay.find("ConfigMap", name or "")
        given += found.get("data", {}) if found else []
    return [f"{name} is given {times} times" for name, times in Counter(given).items() if times > 1]


def reflection(each: Item) -> bool:
    wanted = each.setting("reflection").lower()
    return wanted == "true" or (wanted == "none" and each.setting("auth") == "off")


servers_have_their_own_name_and_reflection_for_trials = Rule(
    "The name is in trailing metadata and in logs, and owns sagas in the journal. Reflection is for"
    " grpcurl: on where Tally is tried out, and only there.",
    SERVERS,
    Check(
        "env[TALLY_REPLICA].valueFrom.fieldRef.fieldPath",
        "metadata.name",
        bad({"name": "TALLY_REPLICA", "value": "order"}, "env[TALLY_REPLICA]"),
    ),
    Check(
        reflection,
        lambda each: each.overlay.name != PRODUCTION,
        bad("true", "env[TALLY_ORDER_REFLECTION].value"),
        bad("false", "env[TALLY_REFLECTION].value", overlay=LOCAL),
    ),
)


def is_production(each: Item) -> str:
    return each.environment.get("TALLY_PRODUCTION", "")


production_is_known_to_all_that_connect = Rule(
    "Else a migration or the audit would connect to a database that it does not verify.",
    WORKLOADS.only(PRODUCTION),
    Check(
        is_production,
        "true",
        bad("false", "env[TALLY_PRODUCTION].value", "Deployment/order"),
        bad(GONE, "env[TALLY_PRODUCTION].value", "Job/order-migrate-*"),
    ),
)


def secrets_it_needs(each: Item) -> list[str]:
    if each.component == "migration":
        return [f"{each.service}-owner"]
    kinds = ["peer-tls", "runtime", "tls"] if each.overlay.has_tls else ["runtime"]
    return [f"{each.service}-{kind}" for kind in kinds]


secrets_are_mounted_by_those_who_need_them = Rule(
    "Without its files a service does not start; only a migration may have the owner's role.",
    OWN,
    Check(
        secrets_of,
        secrets_it_needs,
        bad("order-owner", SECRET_OF),
        bad("order-runtime", SECRET_OF, "Job/order-migrate-*"),
        bad("balance-peer-tls", "pod.volumes[peer-tls].secret.secretName"),
    ),
    Check(f"env[{SECRETS_DIR}].value", MOUNTED, bad("/etc/tally/secret")),
    Check(f"container.volumeMounts[{MOUNTED}].name", "secrets", bad("tmp")),
)


def modes_of_secrets(each: Item) -> list[int]:
    return [one.get("defaultMode") for one in each.values("pod.volumes[*].secret") if one]


secret_files_can_be_read_by_their_group_alone = Rule(
    "They belong to root and to the pod's fsGroup, which the container's user must be in.",
    WORKLOADS,
    Check(
        modes_of_secrets,
        Must("0440", lambda modes: {*modes} <= {0o440}),
        bad(0o400, "pod.volumes[secrets].secret.defaultMode"),
        bad(GONE, "pod.volumes[secrets].secret.defaultMode"),
    ),
    Check(
        "pod.securityContext.fsGroup",
        lambda each: each.get("pod.securityContext.runAsGroup", "set"),
        bad(GONE),
        bad(70, on="StatefulSet/postgres"),
    ),
)


@rule(
    OBJECTS,
    added({"kind": "Secret", "metadata": {"name": "x"}}),
    bad("postgresql://u:secret@h/d", "data.NOTE", "ConfigMap/order-settings*"),
)
def manifests_hold_no_secrets(each: Item) -> Iterator[str]:
    """What is committed is public."""
    if each.kind == "Secret":
        yield "is rendered"
    for path, text in strings(each.raw):
        if _CREDENTIAL.search(text):
            yield f"{path} looks like a credential"


def secret_variables(each: Item) -> list[str]:
    return [name for name in each.environment if _SECRET_NAME.search(name)]


secrets_are_not_variables = Rule(
    "Variables are in crash reports and in every child process; files are not.",
    WORKLOADS,
    Check(
        "container.envFrom[*].secretRef",
        None,
        bad({"secretRef": {"name": "order-runtime"}}, "container.envFrom[0]"),
    ),
    Check(
        "container.env[*].valueFrom.secretKeyRef",
        None,
        bad({"secretKeyRef": {"name": "x", "key": "y"}}, "env[0].valueFrom"),
    ),
    Check(secret_variables, [], bad("redis://redis:6379/0", "env[TALLY_REDIS_URL].value")),
)
