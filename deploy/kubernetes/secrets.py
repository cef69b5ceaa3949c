"""Makes the Secrets that the services, and in ``local`` their servers, mount as files.

No Secret is rendered or committed. In production the platform makes ``<service>-runtime`` and
``<service>-owner`` with the same keys.
"""

from __future__ import annotations

from typing import Any, Final

import yaml

from deploy.local.plan import PORT_OFFSETS, Backends
from deploy.local.postgres_roles import roles_of, service_sql, service_urls
from deploy.local.secret_files import new_password

NAMESPACE: Final = "tally"
SERVICES: Final = tuple(PORT_OFFSETS)
POSTGRES: Final = "postgres:5432"
REDIS: Final = "redis:6379"
GATEWAY: Final = "http://gateway:50055"

Secret = dict[str, Any]
"""A Secret as an object of a manifest."""


def secret_objects(backends: Backends) -> list[Secret]:
    """The Secrets that the services and the gateway simulator mount, for these servers.

    ``<service>-runtime`` and ``<service>-owner``; ``gateway`` with the simulator's key; ``audit``
    with the addresses that ``python -m deploy.audit`` reads, mounted by the component ``audit``.
    """
    found = []
    for service, urls in backends.databases.items():
        prefix = f"TALLY_{service.upper()}"
        runtime = {f"{prefix}_DATABASE_URL": urls.runtime, "TALLY_REDIS_URL": backends.redis_url}
        if service == "payment":
            runtime["TALLY_PAYMENT_GATEWAY_SECRET_KEY"] = backends.gateway_secret_key
        found.append(_secret(f"{service}-runtime", service, runtime))
        found.append(
            _secret(f"{service}-owner", service, {f"{prefix}_OWNER_DATABASE_URL": urls.owner})
        )
    found.append(_secret("gateway", "gateway", {"secret-key": backends.gateway_secret_key}))
    audit = {
        f"TALLY_{service.upper()}_AUDIT_DATABASE_URL": urls.audit
        for service, urls in backends.databases.items()
    }
    found.append(_secret("audit", "audit", audit))
    return found


def local_secret_objects() -> list[Secret]:
    """Every Secret of ``local`` and ``multi-replica-test``, with new passwords.

    Those of the services, and ``postgres`` and ``redis`` for the servers. PostgreSQL makes the
    services' roles from the same passwords when its volume is new.
    """
    passwords = {role: new_password() for service in SERVICES for role in roles_of(service)}
    redis_password = new_password()
    backends = Backends(
        databases={service: service_urls(service, passwords, POSTGRES) for service in SERVICES},
        redis_url=f"redis://:{redis_password}@{REDIS}/0",
        gateway_url=GATEWAY,
        gateway_secret_key=new_password(),
    )
    # PostgreSQL's image runs the script once, on an empty volume.
    roles = "".join(service_sql(service, passwords) for service in SERVICES)
    postgres = {"superuser-password": new_password(), "roles.sql": roles}
    servers = [
        _secret("postgres", "postgres", postgres),
        _secret("redis", "redis", {"valkey.conf": f"requirepass {redis_password}\n"}),
    ]
    return [*secret_objects(backends), *servers]


def as_yaml(objects: list[Secret]) -> str:
    """The objects as one YAML stream for ``kubectl apply -f -``."""
    return yaml.safe_dump_all(objects, sort_keys=False, explicit_start=True)


def _secret(name: str, of: str, data: dict[str, str]) -> Secret:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": name,
            "namespace": NAMESPACE,
            "labels": {
                "app.kubernetes.io/name": of,
                "app.kubernetes.io/component": "secrets",
                "app.kubernetes.io/part-of": "tally",
            },
        },
        "type": "Opaque",
        "stringData": data,
    }
