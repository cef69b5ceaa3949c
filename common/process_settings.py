"""What the settings of every process have, and of those that connect to databases.

How they are read: ``common.settings``.
"""

from __future__ import annotations

import os
import re
import socket
from typing import ClassVar, Literal, TypeAlias

from pydantic import Field
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SecretsSettingsSource,
    SettingsConfigDict,
)

from common import environment
from common.environment import source_of
from common.urls import verifies_postgres

Command: TypeAlias = Literal["serve", "migrate"]


def _replica_name() -> str:
    # In Kubernetes the host name is the pod's; on one machine the process ids differ.
    host = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:48] or "replica"
    return f"{host}-{os.getpid()}"


class ProcessSettings(BaseSettings):
    """The settings of every process. A program derives its own class and sets its name in it."""

    model_config = SettingsConfigDict(
        frozen=True, extra="ignore", case_sensitive=False, hide_input_in_errors=True
    )

    service: ClassVar[str] = ""
    """The program's name in its variables: ``balance`` reads ``TALLY_BALANCE_…``."""

    needed_to_serve: ClassVar[tuple[str, ...]] = ()

    replica: str = Field(
        default_factory=_replica_name,
        pattern=r"^[A-Za-z0-9._-]{1,64}$",
        description="Name of this replica, sent to clients in `tally-replica` and logged.",
        json_schema_extra={"documented_default": "host name and process id"},
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Lowest level that is logged."
    )
    log_format: Literal["json", "console"] = Field(
        default="json", description="One JSON object per line, or text for people."
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
        """The service's own variable or file, then the common one; no .env file."""
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

    def check(self, command: Command) -> None:
        """Raise ValueError if the settings do not go together, or if the command needs others.

        The text begins with the name of the field.
        """


class DatabaseClientSettings(ProcessSettings):
    """The settings of every program that connects to databases."""

    production: bool = Field(
        default=False,
        description="Whether this is production: a program does not start with a database URL that "
        "does not verify the server by TLS, nor a server with AUTH=off, without TLS_DIR, or with a "
        "Redis URL that does not either.",
    )
    allow_unverified_database: bool = Field(
        default=False,
        description="Whether production accepts database URLs without `sslmode=verify-full`: only "
        "where something else encrypts the connection and identifies the server, such as a mesh.",
    )

    def database_problem(self, url: str) -> str:
        """Why a database must not be reached by this URL, or ''."""
        if not self.production or self.allow_unverified_database or verifies_postgres(url):
            return ""
        allowed = source_of(self.service, "allow_unverified_database")
        return (
            f"must end in ?sslmode=verify-full in production; set {allowed}=true only if something "
            "else encrypts the connection and identifies the server"
        )
