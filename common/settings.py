"""Settings of a service: read once from the environment and from secret files, then frozen.

Each field can be given for one service (``TALLY_BALANCE_POOL_SIZE``) or for all of them at once
(``TALLY_POOL_SIZE``); the first wins. With ``TALLY_SECRETS_DIR`` set, a file in that directory with
the variable's name, in either case, counts as well, after the variable itself.

What is wrong with a setting is told in one line that names the variable and never its value.
"""

from __future__ import annotations

import os
import re
import socket
import sys
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SecretsSettingsSource,
    SettingsConfigDict,
)

from common import environment
from common.environment import PREFIX, SECRETS_DIR, SettingsError
from common.urls import BindAddress, PostgresUrl, RedisUrl

__all__ = [
    "PREFIX",
    "SECRETS_DIR",
    "BindAddress",
    "PostgresUrl",
    "RedisUrl",
    "ServiceSettings",
    "SettingsError",
    "load",
    "misspelt",
    "read",
    "reference",
    "source_of",
]


def _replica_name() -> str:
    # In Kubernetes the host name is the pod's; the process id keeps replicas on one machine apart.
    host = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:48] or "replica"
    return f"{host}-{os.getpid()}"


class ServiceSettings(BaseSettings):
    """What every service can be told. A service derives its own class and names itself in it."""

    model_config = SettingsConfigDict(
        frozen=True, extra="ignore", case_sensitive=False, hide_input_in_errors=True
    )

    service: ClassVar[str] = ""
    """The service's name, as in its variables: ``balance`` reads ``TALLY_BALANCE_…``."""

    needed_to_serve: ClassVar[tuple[str, ...]] = ("database_url",)
    needed_to_migrate: ClassVar[tuple[str, ...]] = ("owner_database_url",)

    database_url: PostgresUrl = Field(
        default=SecretStr(""),
        description="PostgreSQL as the runtime role. Needed to serve. For TLS it may end in "
        "`?sslmode=require` or another mode of libpq's.",
    )
    owner_database_url: PostgresUrl = Field(
        default=SecretStr(""), description="PostgreSQL as the owner role. Needed by `migrate` only."
    )
    migrate_wait_s: float = Field(
        default=0.0,
        ge=0,
        le=600,
        description="Time that `migrate` waits for a database that does not answer or is starting.",
    )
    audit_database_url: PostgresUrl = Field(
        default=SecretStr(""),
        description="PostgreSQL as the read-only role. Used by the audit only.",
    )
    redis_url: RedisUrl = Field(
        default=SecretStr(""),
        description="Redis or Valkey for the first line of locks; empty: none.",
    )
    bind: BindAddress = Field(
        default="127.0.0.1:50051",
        description="host:port to serve gRPC on; port 0 takes a free one.",
    )
    replica: str = Field(
        default_factory=_replica_name,
        pattern=r"^[A-Za-z0-9._-]{1,64}$",
        description="Name of this replica, told to clients in `tally-replica` and in the logs.",
        json_schema_extra={"default_told": "host name and process id"},
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least level that is logged."
    )
    log_format: Literal["json", "console"] = Field(
        default="json", description="One JSON object per line, or lines for people."
    )
    reflection: bool = Field(
        default=True,
        description="Whether gRPC reflection is served, as grpcurl needs without .proto files.",
    )
    max_concurrent_calls: int = Field(
        default=1024,
        ge=1,
        le=100_000,
        description="Calls served at once; more are refused with OVERLOADED. Streams count apart, "
        "with the same limit; health checks and reflection do not count.",
    )
    default_deadline_s: float = Field(
        default=10.0, gt=0, le=300, description="Time limit of a unary call whose client set none."
    )
    drain_delay_s: float = Field(
        default=0.0,
        ge=0,
        le=300,
        description="Time between NOT_SERVING and refusing new calls, in which clients and load "
        "balancers take notice.",
    )
    grace_s: float = Field(
        default=10.0,
        ge=0,
        le=300,
        description="Time that running calls get to end when the service stops.",
    )
    max_connection_age_s: float = Field(
        default=300.0,
        gt=0,
        le=86_400,
        description="Age at which a client's connection is closed in good order, so that clients "
        "look up addresses again and find new replicas.",
    )
    readiness_interval_s: float = Field(
        default=1.0,
        gt=0,
        le=60,
        description="Time between two looks at whether this replica can serve.",
    )
    pool_size: int = Field(
        default=8,
        ge=4,
        le=500,
        description="Database connections of this replica, at most: one to look whether it is "
        "ready, and of the others a third each for writes, for rows that others hold, and for "
        "reads.",
    )
    metrics_port: int = Field(
        default=0,
        ge=0,
        le=65535,
        description="Port of the Prometheus page, on the host of BIND; 0: none.",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The service's own variable or file before the common one; no .env file."""
        del env_settings, dotenv_settings, file_secret_settings
        directory = environment.secrets_dir()
        sources: list[PydanticBaseSettingsSource] = [init_settings]
        for prefix in environment.prefixes(cls.service):
            sources.append(EnvSettingsSource(settings_cls, env_prefix=prefix))
            if directory is not None:
                sources.append(
                    SecretsSettingsSource(settings_cls, secrets_dir=directory, env_prefix=prefix)
                )
        return tuple(sources)


S = TypeVar("S", bound=ServiceSettings)


def read(settings_type: type[S], command: Literal["serve", "migrate"] = "serve") -> S:
    """The settings from the environment. Raises SettingsError for the first thing that is wrong."""
    try:
        settings = settings_type()
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        field, told = _blamed(first)
        raise SettingsError(f"{source_of(settings_type, field)}: {told}") from None
    needed = (
        settings_type.needed_to_serve if command == "serve" else settings_type.needed_to_migrate
    )
    for field in needed:
        value = getattr(settings, field)
        if not (value.get_secret_value() if isinstance(value, SecretStr) else value):
            raise SettingsError(f"{source_of(settings_type, field)}: needed to {command}, not set")
    return settings


def load(settings_type: type[S], command: Literal["serve", "migrate"] = "serve") -> S:
    """As ``read``; what is wrong goes to stderr in one line and ends the process with status 2."""
    try:
        return read(settings_type, command)
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(2) from None


def reference(*settings_types: type[ServiceSettings]) -> str:
    """The settings as a Markdown table: those that all services have, then each service's own."""
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    rows += [_row(PREFIX, name, field) for name, field in ServiceSettings.model_fields.items()]
    for settings_type in settings_types:
        prefix = environment.prefixes(settings_type.service)[0]
        for name, field in settings_type.model_fields.items():
            common = ServiceSettings.model_fields.get(name)
            if common is None or common.get_default() != field.get_default():
                rows.append(_row(prefix, name, field, told_by=common))
    return "\n".join(rows) + "\n"


def _row(prefix: str, name: str, field: Any, *, told_by: Any = None) -> str:
    """``told_by``: the common field whose default a service changed, and whose meaning stays."""
    description = field.description or (told_by.description if told_by else None)
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    default = field.get_default()
    if isinstance(default, SecretStr):
        default = default.get_secret_value()
    if "default_told" in extra:
        told = extra["default_told"]
    elif field.is_required():
        told = "(required)"
    else:
        told = f"`{str(default).lower() if isinstance(default, bool) else default}`"
    if told == "``":
        told = "(none)"
    meaning = " ".join(part for part in (description, _bounds(field)) if part)
    return f"| `{prefix}{name.upper()}` | {told} | {meaning} |".replace("\n", " ")


_BOUND_SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def _bounds(field: Any) -> str:
    found = [
        f"{sign} {getattr(constraint, name)}"
        for constraint in field.metadata
        for name, sign in _BOUND_SIGNS.items()
        if getattr(constraint, name, None) is not None
    ]
    return f"({', '.join(found)})" if found else ""


def source_of(settings_type: type[ServiceSettings], field: str) -> str:
    """The variable or file that a field came from; if it came from none, the one to set."""
    return environment.source_of(settings_type.service, field)


def misspelt(settings_type: type[ServiceSettings]) -> list[str]:
    """What is given and is no setting of the service, one line each."""
    return environment.misspelt(settings_type.service, settings_type.model_fields)


def _blamed(error: Any) -> tuple[str, str]:
    """The field that pydantic's error is about, and what is wrong with it.

    A rule about several fields has no field of its own: its message begins with the one to blame.
    """
    message = error["msg"].removeprefix("Value error, ").replace("\n", " ")
    if error["loc"]:
        return str(error["loc"][0]), message
    field, _, told = message.partition(" ")
    return field, told
