"""Settings of a service: read once from the environment and from secret files, then frozen.

Only the role and password of a database URL are read again, if they are in a file, for each session
(``common.db.connections``).

Each field can be given for one service (``TALLY_BALANCE_POOL_SIZE``) or for all services
(``TALLY_POOL_SIZE``); the first wins. With ``TALLY_SECRETS_DIR`` set, a file in that directory with
the variable's name, in upper or lower case, is read too; the variable itself wins over the file.

An error is one line that names the variable and never its value.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, TypeVar

from pydantic import Field, SecretStr, ValidationError
from pydantic_core import ErrorDetails

from common.environment import SettingsError, source_of
from common.gcra import Rate
from common.process_settings import Command, DatabaseClientSettings, ProcessSettings
from common.setting_types import (
    WORD,
    AbsolutePath,
    PeerServices,
    Pooler,
    RateSetting,
    ServiceMethods,
    count,
    rate,
    seconds,
)
from common.urls import (
    BindAddress,
    JwksLocation,
    Networks,
    OptionalBindAddress,
    PostgresUrl,
    RedisUrl,
    verifies_redis,
)


class ServiceSettings(DatabaseClientSettings):
    """The settings of every service. A service derives its own class and sets its name in it."""

    needed_to_serve: ClassVar[tuple[str, ...]] = ("database_url",)

    saga_methods: ClassVar[tuple[str, ...]] = ()
    """The service's methods (``package.Service/Method``) that the order service's sagas call."""

    limited_by: ClassVar[Mapping[str, str]] = {}
    """The limit of each method that has one of its own, by the name of its setting."""

    database_url: PostgresUrl = Field(
        default=SecretStr(""),
        description="PostgreSQL as the runtime role. Needed to serve. For TLS it may end in "
        "`?sslmode=verify-full&sslrootcert=/path/ca.crt`, with the modes of libpq.",
    )
    owner_database_url: PostgresUrl = Field(
        default=SecretStr(""), description="PostgreSQL as the owner role. Needed by `migrate` only."
    )
    migrate_wait_s: float = seconds(
        0.0,
        "Time that `migrate` waits for a database that does not answer or is starting.",
        most=600,
        least=0,
    )
    audit_database_url: PostgresUrl = Field(
        default=SecretStr(""),
        description="PostgreSQL as the read-only role. Used by the audit and by rebuild only.",
    )
    redis_url: RedisUrl = Field(
        default=SecretStr(""),
        description="Redis or Valkey for the first line of locks: redis://host:port/0, "
        "redis+sentinel://host:port,…/service, redis+cluster://host:port,…; empty: none. For TLS "
        "rediss…://, which may end in `?ssl_ca_certs=/path/ca.crt`.",
    )
    allow_unverified_redis: bool = Field(
        default=False,
        description="Whether production accepts a Redis URL without TLS, or one that does not "
        "verify the server: only where something else does, such as a mesh or a local socket.",
    )
    bind: BindAddress = Field(
        default="127.0.0.1:50051",
        description="host:port to serve gRPC on; port 0 is any free port.",
    )
    log_calls: Literal["errors", "all", "off"] = Field(
        default="errors",
        description="Calls that are logged, a line each: those that could not be served, all, or "
        "none.",
    )
    reflection: bool | None = Field(
        default=None,
        description="Whether gRPC reflection is served, to anyone; grpcurl needs it without .proto "
        "files.",
        json_schema_extra={"documented_default": "`true`; `false` with AUTH=required"},
    )
    pause_file: AbsolutePath = Field(
        default="",
        description="Path, from the root, of a file with the methods that are paused, one "
        "`package.Service/Method` or `package.Service` in a line; it is read again each second. "
        "Empty: none is paused.",
    )
    max_concurrent_calls: int = count(
        1024,
        "Calls served at once; more are refused with OVERLOADED. Streams have the same "
        "limit, counted separately; health checks and reflection do not count.",
        most=100_000,
    )
    max_connections: int = count(
        4_096,
        "Connections to each port of clients and of peers, if the process may open as many files "
        "and 192 more; otherwise what is left of them, divided between these ports. Further ones "
        "are closed at once.",
        most=1_000_000,
    )
    default_deadline_s: float = seconds(
        10.0, "Time limit of a unary call whose client set none.", most=300
    )
    drain_delay_s: float = seconds(
        0.0,
        "Time between NOT_SERVING and refusing new calls, in which clients and load "
        "balancers notice.",
        most=300,
        least=0,
    )
    grace_s: float = seconds(
        10.0, "How long running calls may still take when the service stops.", most=300, least=0
    )
    max_connection_age_s: float = seconds(
        300.0,
        "Age at which a client's connection is closed gracefully, so that clients "
        "resolve addresses again and find new replicas.",
        most=86_400,
    )
    readiness_interval_s: float = seconds(1.0, "Time between two readiness probes.", most=60)
    pool_size: int = count(
        8,
        "Database connections of this replica, at most: one for the readiness probe, "
        "and of the others a third each for writes, for background work and writes that wait for "
        "locked rows, and for reads.",
        most=500,
        least=4,
    )
    pooler: Pooler = Field(
        default="none",
        description="What the database's address leads through. `transaction`: PgBouncer 1.21 or "
        "newer in transaction mode, or another pooler that keeps prepared statements. The owner's "
        "and the audit's addresses lead to the server itself.",
    )
    metrics_port: int = count(
        0, "Port of the Prometheus page, on the host of BIND; 0: none.", most=65535, least=0
    )
    tls_dir: AbsolutePath = Field(
        default="",
        description="Directory with `tls.crt` and `tls.key`, with which BIND and the Prometheus "
        "page are served over TLS; read again every 10 s. Empty: plaintext.",
    )
    peer_bind: OptionalBindAddress = Field(
        default="",
        description="host:port to serve gRPC on for other services, which identify themselves by a "
        "certificate; empty: none. Needs PEER_TLS_DIR.",
    )
    peer_tls_dir: AbsolutePath = Field(
        default="",
        description="Directory with `tls.crt`, `tls.key` and `ca.crt`, for PEER_BIND and for the "
        "order service's calls to others; read again every 10 s.",
    )
    peer_services: PeerServices = Field(
        default={},
        description="The services that certificates name, as JSON: "
        '`{"spiffe://example.org/ns/tally/sa/order": "order"}`, by the URI in them.',
        json_schema_extra={"documented_default": "`{}`"},
    )
    probe_bind: OptionalBindAddress = Field(
        default="",
        description="host:port to serve health on, in plaintext and nothing else, for probes that "
        "do no TLS; empty: none.",
    )
    auth: Literal["off", "required"] = Field(
        default="off",
        description="`required`: calls need a token, and are admitted by docs/access.md. `off`: "
        "whoever reaches the port acts for any user and as an operator.",
    )
    auth_issuer: str = Field(
        default="", description="The `iss` of tokens. Needed with AUTH=required."
    )
    auth_audience: str = Field(
        default="tally", pattern=WORD, description="The `aud` that tokens must have."
    )
    auth_jwks: JwksLocation = Field(
        default="",
        description="The issuer's public keys (JWKS): the path of a file, or an https:// URL. Read "
        "every 30 s. Needed with AUTH=required.",
    )
    auth_leeway_s: float = seconds(
        10.0, "How far the issuer's clock may differ from this one.", most=300, least=0
    )
    auth_role_claim: str = Field(
        default="tally_role",
        pattern=WORD,
        description="The claim that makes a caller a `service` or an `operator`; without it, or "
        "with another value, a caller is a user.",
    )
    auth_services: ServiceMethods = Field(
        default={},
        description="The methods of each service that calls Tally, as JSON: "
        '`{"till": ["tally.balance.v1.BalanceService/ChargeBalance"]}`, by the `sub` of its '
        "tokens. The order service also has those that its sagas call.",
        json_schema_extra={"documented_default": "`{}`"},
    )
    auth_saga_service: str = Field(
        default="order",
        pattern=WORD,
        description="The `sub` of the order service's tokens. Only it uses request_ids of sagas.",
    )
    rate_limits: bool | None = Field(
        default=None,
        description="Whether the calls of each user are limited, by the settings RATE_LIMIT_….",
        json_schema_extra={"documented_default": "`false`; `true` with AUTH=required"},
    )
    rate_limit_replicas: int = count(
        2,
        "Replicas of the service, at most, that share the limits. With fewer, each has less while "
        "Redis is away; with more, a user can have more than the limit (docs/guides/limits.md).",
        most=1_000,
    )
    rate_limit_reads: RateSetting = rate(
        50,
        500,
        "Calls of a user to each method that changes nothing: per second, and at once after a "
        "pause. Empty: not limited.",
    )
    rate_limit_writes: RateSetting = rate(
        20, 200, "The same of each method that changes something and has no limit of its own."
    )
    rate_limit_public: RateSetting = rate(
        200, 2_000, "Calls from an address to each public method, in the same form."
    )
    trusted_proxies: Networks = Field(
        default=(),
        description="Networks of proxies whose `x-forwarded-for` is believed: "
        "`10.0.0.0/8,192.0.2.7`. Their calls that name no client are not limited by address.",
        json_schema_extra={"documented_default": "(none)"},
    )

    @property
    def limits_rates(self) -> bool:
        """Whether the calls of users are limited."""
        return self.auth == "required" if self.rate_limits is None else self.rate_limits

    def rate_of(self, method: str, *, is_read: bool) -> Rate | None:
        """The limit of a user's calls to a method, by its full name; None: there is none."""
        name = "rate_limit_reads" if is_read else "rate_limit_writes"
        found: Rate | None = getattr(self, self.limited_by.get(method, name))
        return found

    def check(self, command: Command) -> None:
        if command == "serve":
            self._check_identity()
            self._check_tls()
            self._check_redis()
        self._check_databases()

    def _check_identity(self) -> None:
        if self.production and self.auth == "off":
            raise ValueError("auth must be required in production")
        if self.auth == "required":
            for name in ("auth_issuer", "auth_jwks"):
                if not getattr(self, name):
                    auth = source_of(self.service, "auth")
                    raise ValueError(f"{name} is needed with {auth}=required")

    def _check_tls(self) -> None:
        if self.production and not self.tls_dir:
            raise ValueError("tls_dir is needed in production")
        if self.peer_bind and not self.peer_tls_dir:
            raise ValueError(f"peer_tls_dir is needed with {source_of(self.service, 'peer_bind')}")

    def _check_databases(self) -> None:
        for field in ("database_url", "owner_database_url", "audit_database_url"):
            url: str = getattr(self, field).get_secret_value()
            if url and (problem := self.database_problem(url)):
                raise ValueError(f"{field} {problem}")

    def _check_redis(self) -> None:
        url = self.redis_url.get_secret_value()
        if self.production and url and not (self.allow_unverified_redis or verifies_redis(url)):
            allowed = source_of(self.service, "allow_unverified_redis")
            raise ValueError(
                "redis_url must be rediss://, rediss+sentinel:// or rediss+cluster:// in "
                f"production, and check certificate and host; set {allowed}=true only if something "
                "else encrypts the connection and identifies the server"
            )


S = TypeVar("S", bound=ProcessSettings)


def read(settings_type: type[S], command: Command = "serve") -> S:
    """The settings from the environment. Raises SettingsError for the first one that is wrong."""
    try:
        settings = settings_type()
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        field, problem = _field_and_problem(first)
        raise SettingsError(f"{source_of(settings_type.service, field)}: {problem}") from None
    try:
        settings.check(command)
    except ValueError as error:
        field, _, problem = str(error).partition(" ")
        raise SettingsError(f"{source_of(settings_type.service, field)}: {problem}") from None
    needed = settings_type.needed_to_serve if command == "serve" else ("owner_database_url",)
    for field in needed:
        value = getattr(settings, field)
        if not (value.get_secret_value() if isinstance(value, SecretStr) else value):
            source = source_of(settings_type.service, field)
            raise SettingsError(f"{source}: needed to {command}, not set")
    return settings


def _field_and_problem(error: ErrorDetails) -> tuple[str, str]:
    """The field that pydantic's error is about, and what is wrong with it.

    A rule about several fields has no field of its own: its message begins with the field.
    """
    message = error["msg"].removeprefix("Value error, ").replace("\n", " ")
    if error["loc"]:
        return str(error["loc"][0]), message
    field, _, problem = message.partition(" ")
    return field, problem
