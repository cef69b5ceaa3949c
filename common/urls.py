"""Types of settings that are URLs or addresses. Their form is checked before anything connects."""

from __future__ import annotations

import ipaddress
import re
import ssl
from dataclasses import dataclass
from typing import Annotated, Any, Final, TypeAlias
from urllib.parse import parse_qs, unquote, urlsplit

from pydantic import AfterValidator, BeforeValidator, SecretStr
from pydantic_settings import NoDecode
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from tally_client.rpc.addresses import PORT_MAX, split_host_port

IpAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

SSL_MODES: Final = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")

VERIFYING_MODES: Final = ("require", "verify-ca", "verify-full")
"""Modes that check the server's certificate if the authorities are given, as in libpq."""

_POSTGRES: Final = re.compile(r"postgresql://[^\s/?#]+/[^\s/?#]+(\?[^\s#]*)?")
_REDIS_SCHEMES: Final = ("redis", "rediss", "unix")
_REDIS_NODES: Final = re.compile(
    r"redis(?P<tls>s?)\+(?P<kind>sentinel|cluster)://"
    r"(?:(?P<user>[^:@/\s]*):(?P<password>[^@/\s]*)@)?"
    r"(?P<addresses>[^/@\s?#]+)(?:/(?P<service>[^/\s?#]+)(?:/(?P<database>\d{1,4}))?)?/?"
    r"(?:\?ssl_ca_certs=(?P<authorities>/[^\s?#&]+))?"
)
_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")
_POSTGRES_FORM: Final = "must be postgresql://user:password@host:port/database"
_REDIS_FORM: Final = (
    "must be redis://, rediss:// or unix:// with an address, redis+sentinel://host:port,…/service, "
    "redis+cluster://host:port,…, or empty"
)


def engine_url(text: str) -> URL:
    """The URL for SQLAlchemy's asyncpg dialect, from a ``postgresql://`` URL.

    libpq's ``sslmode`` becomes asyncpg's ``ssl``, and ``sslrootcert``, the file of the authorities
    that sign the server's certificate, goes with a mode that needs TLS. No other parameter is
    accepted: the pools set the rest. Raises ValueError, without the URL's text, for any other form.
    """
    if _POSTGRES.fullmatch(text) is None:
        raise ValueError(_POSTGRES_FORM)
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise ValueError(_POSTGRES_FORM) from None
    if not url.host or not url.database or not (url.port is None or 0 < url.port <= PORT_MAX):
        raise ValueError(_POSTGRES_FORM)
    given = dict(url.query)
    authorities = given.pop("sslrootcert", None)
    if set(given) - {"sslmode", "ssl"} or len(given) > 1:
        raise ValueError("may have no parameter but sslmode and sslrootcert")
    mode = given.get("sslmode") or given.get("ssl")
    if given and mode not in SSL_MODES:
        raise ValueError(f"sslmode must be one of {', '.join(SSL_MODES)}")
    query = {"ssl": str(mode)} if mode else {}
    if authorities is not None:
        if mode not in VERIFYING_MODES or not str(authorities).startswith("/"):
            raise ValueError(
                f"sslrootcert is a path from the root, with sslmode={' or '.join(VERIFYING_MODES)}"
            )
        query["sslrootcert"] = str(authorities)
    return url.set(drivername="postgresql+asyncpg", query=query)


def verifies_postgres(text: str) -> bool:
    """Whether connections by the URL check that the server has a certificate for its host."""
    return engine_url(text).query.get("ssl") == "verify-full"


def connect_arguments(url: URL) -> dict[str, Any]:
    """The arguments of ``asyncpg.connect`` for a URL from ``engine_url``. Raises as the next."""
    return {**url.translate_connect_args(username="user"), **tls_arguments(url)}


def tls_arguments(url: URL) -> dict[str, Any]:
    """Of ``connect_arguments`` those for TLS.

    A file of authorities is read now, so that a new one is used without a restart. Raises OSError
    if it cannot be read.
    """
    mode, authorities = url.query.get("ssl"), url.query.get("sslrootcert")
    if mode is None or authorities is None:
        return dict(url.query)
    try:
        context = ssl.create_default_context(cafile=str(authorities))
    except OSError as error:  # an ssl.SSLError is one
        raise OSError(f"sslrootcert {authorities}: {error.strerror or 'no certificate'}") from None
    context.check_hostname = mode == "verify-full"
    return {"ssl": context}


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
    """Of Redis and of Sentinels."""
    authorities: str | None = None
    """File of the authorities that sign the servers' certificates; None: those of the system."""


def redis_nodes(text: str) -> RedisNodes | None:
    """The parts of a URL of Sentinels or of a cluster; None for one of a single server.

    Raises ValueError, without the URL's text, for a URL of several servers that has another form.
    """
    if not text.partition(":")[0].endswith(("+sentinel", "+cluster")):
        return None
    match = _REDIS_NODES.fullmatch(text)
    if match is None or (match["kind"] == "sentinel") != bool(match["service"]):
        raise ValueError(_REDIS_FORM)
    if match["authorities"] and not match["tls"]:
        raise ValueError("ssl_ca_certs is for rediss+sentinel:// and rediss+cluster://")
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
        match["authorities"],
    )


def verifies_redis(text: str) -> bool:
    """Whether connections by the URL check that each server has a certificate for its host."""
    nodes = redis_nodes(text)
    if nodes is not None:
        return nodes.tls
    parts = urlsplit(text)
    given = parse_qs(parts.query)
    # The client's options that turn a check off; those of several servers cannot have them.
    return (
        parts.scheme == "rediss"
        and given.get("ssl_cert_reqs", ["required"]) == ["required"]
        and given.get("ssl_check_hostname", ["true"]) == ["true"]
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


def _optional_bind(address: str) -> str:
    return _bind(address) if address else ""


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
OptionalBindAddress = Annotated[str, AfterValidator(_optional_bind)]
Networks = Annotated[tuple[Network, ...], NoDecode, BeforeValidator(_networks)]
