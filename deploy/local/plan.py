"""The parts of a stack: processes, ports, addresses and environments.

Ports on 127.0.0.1, from the base P (default 50050): P+1 balance, P+2 coupon, P+3 order,
P+4 payment, and 100 more for each further replica; P+5 gateway simulator, P+6 PostgreSQL,
P+7 Valkey, P+8 Prometheus, P+9 Alertmanager. The metrics pages: M+1 to M+4, and 100 more for each
further replica; M+5 that of the audit; M is P+10 unless it is given.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from deploy.local.errors import RunnerError
from deploy.local.postgres_roles import ServiceUrls
from deploy.local.processes import HOST

PROJECT: Final = Path(__file__).resolve().parents[2]
DEFAULT_DATA_DIR: Final = PROJECT / ".tally" / "data"
GATEWAY_RECORD: Final = "gateway.sqlite3"
"""In the data directory."""
PORT_OFFSETS: Final = {"balance": 1, "coupon": 2, "order": 3, "payment": 4}
SERVICES: Final = tuple(PORT_OFFSETS)
SERVER_OFFSETS: Final = {"gateway": 5, "postgres": 6, "valkey": 7}
MONITORING_OFFSETS: Final = {"prometheus": 8, "alertmanager": 9}
METRICS_OFFSET: Final = 10
AUDIT: Final = "audit"
PAGE_OFFSETS: Final = PORT_OFFSETS | {AUDIT: 5}
REPLICA_STEP: Final = 100
PORT_MAX: Final = 65535
ARENAS_MAX: Final = "1"
"""Arenas of memory of a replica, as in the image (``deploy/docker/Dockerfile`` says why)."""


def services() -> tuple[str, ...]:
    """The services of this checkout, in the order of their ports."""
    return tuple(name for name in SERVICES if (PROJECT / f"{name}_service/__main__.py").exists())


@dataclasses.dataclass(frozen=True)
class Plan:
    """One stack. Raises RunnerError for numbers out of range."""

    data_dir: Path = DEFAULT_DATA_DIR
    replicas: int = 2
    base_port: int = 50050
    metrics_port: int | None = None
    """The base of the metrics pages' ports; None: METRICS_OFFSET above ``base_port``."""
    monitoring: bool = False
    """Whether the audit runs too, and Prometheus and Alertmanager where they are installed."""
    gateway_latency_ms: tuple[int, int] = (100, 500)
    redis: bool = True
    auth: bool = False
    """Whether the services ask for tokens."""
    ready_file: Path | None = None
    services: tuple[str, ...] = dataclasses.field(default_factory=services)

    def __post_init__(self) -> None:
        if not 1 <= self.replicas <= REPLICA_STEP:
            raise RunnerError(f"replicas must be from 1 to {REPLICA_STEP}, not {self.replicas}")
        self._check_ports()
        low, high = self.gateway_latency_ms
        if not 0 <= low <= high <= 60_000:
            raise RunnerError("gateway latency must be LOW-HIGH with 0 <= LOW <= HIGH <= 60000")

    def port(self, name: str, replica: int = 0) -> int:
        """The port of a service's replica, or of a server of the stack."""
        offsets = PORT_OFFSETS | SERVER_OFFSETS | MONITORING_OFFSETS
        return self.base_port + offsets[name] + REPLICA_STEP * replica

    def metrics_page_port(self, service: str, replica: int = 0) -> int:
        """The port of the metrics page of a service's replica, or of the audit."""
        base = self.base_port + METRICS_OFFSET if self.metrics_port is None else self.metrics_port
        return base + PAGE_OFFSETS[service] + REPLICA_STEP * replica

    @property
    def identity_dir(self) -> Path:
        """Where the stack's own keys and tokens are, if it has any."""
        return self.data_dir / "identity"

    def addresses(self, service: str) -> list[str]:
        return [f"{HOST}:{self.port(service, replica)}" for replica in range(self.replicas)]

    def metrics_addresses(self, service: str) -> list[str]:
        """Where the replicas of a service serve their metrics pages, in the same order."""
        return [
            f"{HOST}:{self.metrics_page_port(service, replica)}" for replica in range(self.replicas)
        ]

    def metrics_pages(self, *, audit: bool = False) -> dict[str, list[str]]:
        """The addresses of all metrics pages by service, with that of the audit if it runs."""
        pages = {service: self.metrics_addresses(service) for service in self.services}
        return pages | ({AUDIT: [f"{HOST}:{self.metrics_page_port(AUDIT)}"]} if audit else {})

    def _check_ports(self) -> None:
        replicas = range(self.replicas)
        pages = {self.metrics_page_port(name, each) for name in SERVICES for each in replicas}
        pages.add(self.metrics_page_port(AUDIT))
        others = {self.port(name, each) for name in SERVICES for each in replicas}
        others |= {self.port(name) for name in SERVER_OFFSETS | MONITORING_OFFSETS}
        for option, ports in (("base port", others), ("metrics port", pages)):
            if min(ports) <= 1024 or max(ports) > PORT_MAX:
                raise RunnerError(
                    f"{option} must be at least 1024 and the last port ({max(ports)}) "
                    f"at most {PORT_MAX}"
                )
        if others & pages:
            raise RunnerError(
                f"metrics port must leave port {min(others & pages)} to another server: "
                "by default it is 10 above the base port"
            )


def latency_range(text: str) -> tuple[int, int]:
    """Parse LOW-HIGH, in milliseconds. Raises RunnerError."""
    match = re.fullmatch(r"(\d{1,5})-(\d{1,5})", text)
    if match is None:
        raise RunnerError(f"gateway latency must be LOW-HIGH in milliseconds, not {text!r}")
    return int(match[1]), int(match[2])


@dataclasses.dataclass(frozen=True)
class Backends:
    """The servers that the services of a stack use. An empty address means none."""

    databases: Mapping[str, ServiceUrls]
    redis_url: str
    gateway_url: str
    gateway_secret_key: str


def named_backends(environment: Mapping[str, str], plan: Plan) -> Backends:
    """The servers that the environment names, which the runner therefore does not start."""
    databases = {}
    for service in plan.services:
        prefix = f"TALLY_{service.upper()}_"
        urls = ServiceUrls(
            owner=environment.get(f"{prefix}OWNER_DATABASE_URL", ""),
            runtime=environment.get(f"{prefix}DATABASE_URL", ""),
            audit=environment.get(f"{prefix}AUDIT_DATABASE_URL", ""),
        )
        if urls.runtime and not urls.owner:
            raise RunnerError(
                f"{prefix}DATABASE_URL is set and {prefix}OWNER_DATABASE_URL is not: "
                "the owner is needed to migrate"
            )
        if urls.runtime:
            databases[service] = urls
    return Backends(
        databases,
        environment.get("TALLY_REDIS_URL", "") if plan.redis else "",
        environment.get("TALLY_PAYMENT_GATEWAY_URL", ""),
        environment.get("TALLY_PAYMENT_GATEWAY_SECRET_KEY", ""),
    )


def plain_environment() -> dict[str, str]:
    """The user's environment without secrets: each child gets only those that it needs."""
    secret = ("DATABASE_URL", "REDIS_URL", "SECRET_KEY")
    return {
        name: value
        for name, value in os.environ.items()
        if not (name.startswith("TALLY_") and name.endswith(secret))
    }


def use_own_servers(**settings: str) -> None:
    """Remove the servers that the environment names, and add settings for all children."""
    own = plain_environment() | settings
    own.pop("TALLY_PAYMENT_GATEWAY_URL", None)
    os.environ.clear()
    os.environ.update(own)


def migration_environment(service: str, backends: Backends) -> dict[str, str]:
    urls = backends.databases[service]
    return plain_environment() | {f"TALLY_{service.upper()}_OWNER_DATABASE_URL": urls.owner}


def replica_environment(
    plan: Plan, service: str, replica: int, backends: Backends
) -> dict[str, str]:
    settings = {
        "DATABASE_URL": backends.databases[service].runtime,
        "REDIS_URL": backends.redis_url,
        "BIND": f"{HOST}:{plan.port(service, replica)}",
        "REPLICA": f"{service}-{replica}",
        "METRICS_PORT": str(plan.metrics_page_port(service, replica)),
        "RATE_LIMIT_REPLICAS": str(plan.replicas),
    }
    if service == "order":
        settings |= {
            f"{peer.upper()}_ADDRESS": ",".join(plan.addresses(peer))
            for peer in ("balance", "coupon", "payment")
        }
    if service == "payment":
        settings |= {
            "GATEWAY_URL": backends.gateway_url,
            "GATEWAY_SECRET_KEY": backends.gateway_secret_key,
        }
    named = {f"TALLY_{service.upper()}_{name}": value for name, value in settings.items()}
    # grpcurl, with which a user explores the local stack, needs reflection.
    given = {"TALLY_REFLECTION": "true", "MALLOC_ARENA_MAX": ARENAS_MAX}
    return given | plain_environment() | named


def audit_environment(plan: Plan, backends: Backends) -> dict[str, str]:
    """That of ``python -m deploy.audit serve`` beside a stack."""
    settings = {
        "TALLY_AUDIT_REPLICA": f"{AUDIT}-0",
        "TALLY_AUDIT_METRICS_BIND": f"{HOST}:{plan.metrics_page_port(AUDIT)}",
        "TALLY_AUDIT_CHECKPOINT": str(plan.data_dir / AUDIT / "checkpoint.json"),
    }
    for service, urls in backends.databases.items():
        settings[f"TALLY_{service.upper()}_AUDIT_DATABASE_URL"] = urls.audit
    if backends.gateway_url and backends.gateway_secret_key:
        settings |= {
            "TALLY_PAYMENT_GATEWAY_URL": backends.gateway_url,
            "TALLY_PAYMENT_GATEWAY_SECRET_KEY": backends.gateway_secret_key,
        }
    return plain_environment() | settings
