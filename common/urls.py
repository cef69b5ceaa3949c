"""Types of settings that are URLs or addresses. Their form is checked before anything connects."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Annotated, Final, TypeAlias
from urllib.parse import unquote, urlsplit

from pydantic import AfterValidator, BeforeValidator, SecretStr
from pydantic_settings import NoDecode
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from tally_client.rpc.addresses import PORT_MAX, split_host_port

IpAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

SSL_MODES: Final = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")

_POSTGRES: Final = re.compile(r"postgresql://[^\s/?#]+/[^\s/?#]+(\?[^\s#]*)?")
_REDIS_SCHEMES: Final = ("redis", "rediss", "unix")
_REDIS_NODES: Final = re.compile(
    r"redis(?P<tls>s?)\+(?P<kind>sentinel|cluster)://"
    r"(?:(?P<user>[^:@/\s]*):(?P<password>[^@/\s]*)@)?"
    r"(?P<addresses>[^/@\s?#]+)(?:/(?P<service>[^/\s?#]+)(?:/(?P<database>\d{1,4}))?)?/?"
)
_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")
_POSTGRES_FORM: Final = "must be postgresql://user:password@host:port/database"
_REDIS_FORM: Final = (
    "must be redis://, rediss:// or unix:// with an address, redis+sentinel://host:port,…/service, "
    "redis+cluster://host:port,…, or empty"
)


def engine_url(text: str) -> URL:
    """The URL for SQLAlchemy's asyncpg dialect, from a ``postgresql://`` URL.

    libpq's ``sslmode`` becomes asyncpg's ``ssl``. No other parameter is accepted: the pools set the
    rest. Raises ValueError, without the URL's text, for any other form.
    """
    if _POSTGRES.fullmatch(text) is None:
        raise ValueError(_POSTGRES_FORM)
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise ValueError(_POSTGRES_FORM) from None
    if not url.host or not url.database or not (url.port is None or 0 < url.port <= PORT_MAX):
        raise ValueError(_POSTGRES_FORM)
    unknown = set(url.query) - {"sslmode", "ssl"}
    if unknown or len(url.query) > 1:
        raise ValueError("may have no parameter but sslmode after the question mark")
    mode = url.query.get("sslmode") or url.query.get("ssl")
    if url.query and mode not in SSL_MODES:
        raise ValueError(f"sslmode must be one of {', '.join(SSL_MODES)}")
    return url.set(drivername="postgresql+asyncpg", query={"ssl": str(mode)} if mode else {})


def connect_arguments(url: URL) -> dict[str, object]:
    """The arguments of ``asyncpg.connect`` for a URL from ``engine_url``."""
    named = url.translate_connect_args(username="user")
    return {**named, **url.query}


@dataclass(frozen=True, slots=True)
class RedisNodes:
    """Several servers by which one Redis is found."""

    addresses: tuple[tuple[str, int], ...]
    service: str
    """The name under which Sentinels know the primary; '' for a cluster."""
    database: int
    user: str | None
    password: str | None
    """Of Redis; Sentinels are asked without one."""
    tls: bool


def redis_nodes(text: str) -> RedisNodes | None:
    """The parts of a URL of Sentinels or of a cluster; None for one of a single server.

    Raises ValueError, without the URL's text, for a URL of several servers that has another form.
    """
    if not text.partition(":")[0].endswith(("+sentinel", "+cluster")):
        return None
    match = _REDIS_NODES.fullmatch(text)
    if match is None or (match["kind"] == "sentinel") != bool(match["service"]):
        raise ValueError(_REDIS_FORM)
    try:
        pairs = [split_host_port(each) for each in match["addresses"].split(",")]
    except ValueError:
        raise ValueError(_REDIS_FORM) from None
    if not all(port for _, port in pairs):
        raise ValueError(_REDIS_FORM)
    return RedisNodes(
        tuple((host.strip("[]"), port) for host, port in pairs),
        match["service"] or "",
        int(match["database"] or 0),
        unquote(match["user"] or "") or None,
        unquote(match["password"] or "") or None,
        bool(match["tls"]),
    )


def _jwks_location(location: str) -> str:
    if "://" not in location:
        return location
    try:
        parts = urlsplit(location)
        # Whoever can change the keys on their way can make tokens.
        safe = parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK)
        well_formed = safe and parts.hostname and parts.port != 0 and "@" not in parts.netloc
    except ValueError:  # a port that is not a number, or too large
        well_formed = False
    if not well_formed:
        raise ValueError("must be the path of a file, or an https:// URL")
    return location


def _networks(listed: object) -> object:
    if not isinstance(listed, str):
        return listed
    try:
        return tuple(ipaddress.ip_network(each.strip()) for each in listed.split(",") if each)
    except ValueError:
        form = "must be networks or addresses, separated by commas: 10.0.0.0/8,192.0.2.7"
        raise ValueError(form) from None


def _bind(address: str) -> str:
    split_host_port(address)
    return address


def _postgres_url(url: SecretStr) -> SecretStr:
    if url.get_secret_value():
        engine_url(url.get_secret_value())
    return url


def _redis_url(url: SecretStr) -> SecretStr:
    text = url.get_secret_value()
    if not text:
        return url
    if redis_nodes(text) is not None:
        return url
    try:
        parts = urlsplit(text)
        place = parts.path if parts.scheme == "unix" else parts.hostname
        well_formed = parts.scheme in _REDIS_SCHEMES and place and parts.port != 0
    except ValueError:  # a port that is not a number, or too large
        well_formed = False
    if not well_formed or any(character.isspace() for character in text):
        raise ValueError(_REDIS_FORM)
    return url


PostgresUrl = Annotated[SecretStr, AfterValidator(_postgres_url)]
RedisUrl = Annotated[SecretStr, AfterValidator(_redis_url)]
JwksLocation = Annotated[str, AfterValidator(_jwks_location)]
BindAddress = Annotated[str, AfterValidator(_bind)]
Networks = Annotated[tuple[Network, ...], NoDecode, BeforeValidator(_networks)]
