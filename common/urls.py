"""Addresses in settings: what they must look like, checked whole before anything connects."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final

from pydantic import AfterValidator, SecretStr
from redis.asyncio import ConnectionPool
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from common.addresses import PORT_MAX, split_host_port

SSL_MODES: Final = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")

_POSTGRES: Final = re.compile(r"postgresql://[^\s/?#]+/[^\s/?#]+(\?[^\s#]*)?")
_REDIS: Final = re.compile(r"(rediss?|unix)://\S+")
_POSTGRES_FORM: Final = "must be postgresql://user:password@host:port/database"
_REDIS_FORM: Final = "must be redis://, rediss:// or unix:// with an address, or empty"


def engine_url(text: str) -> URL:
    """What SQLAlchemy's asyncpg dialect takes for a ``postgresql://`` URL.

    ``sslmode`` is libpq's word for what asyncpg calls ``ssl``; no other parameter is taken, for
    the pools set what else there is. Raises ValueError, without the URL's text, if it is none.
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
        raise ValueError("may have sslmode after the question mark, and nothing else")
    mode = url.query.get("sslmode") or url.query.get("ssl")
    if url.query and mode not in SSL_MODES:
        raise ValueError(f"sslmode must be one of {', '.join(SSL_MODES)}")
    return url.set(drivername="postgresql+asyncpg", query={"ssl": str(mode)} if mode else {})


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
    if _REDIS.fullmatch(text) is None:
        raise ValueError(_REDIS_FORM)
    try:
        # Made and not connected: this is where the client would find an option that it does not
        # know, but only in the middle of the first call.
        pool: Any = ConnectionPool.from_url(text)
        pool.make_connection()
    except (TypeError, ValueError):
        raise ValueError(f"{_REDIS_FORM}; its port, or an option, is not one") from None
    return url


PostgresUrl = Annotated[SecretStr, AfterValidator(_postgres_url)]
RedisUrl = Annotated[SecretStr, AfterValidator(_redis_url)]
BindAddress = Annotated[str, AfterValidator(_bind)]
