"""Reads a JWKS from its file or URL, again and again: keys change without a restart.

If it cannot be read, or has no usable key, the last good keys stay.
"""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Final

import structlog

from common.identity.keys import UnusableKeys, parse_keys
from common.identity.tokens import TokenVerifier
from common.metrics import KEYS_READ

REFRESH_S: Final = 30.0
"""Time between two reads. An issuer that publishes a key this long before it signs with it, and
keeps it while tokens of it live, rotates its keys without a refused call."""
FETCH_S: Final = 5.0
BYTES_MAX: Final = 256 * 1024

_log = structlog.stdlib.get_logger()


class Unreadable(Exception):  # noqa: N818 - a state, not a fault
    """The JWKS cannot be read, or has no usable key. The text says why, in one line."""


class Jwks:
    """A JWKS at a path or URL, and the verifier that uses its keys."""

    def __init__(self, location: str, verifier: TokenVerifier) -> None:
        self._location = location
        self._verifier = verifier
        # With the authorities of SSL_CERT_FILE as it is at the start, if it is set.
        self._tls = ssl.create_default_context() if "://" in location else None
        self.problem = ""
        """Why the last read failed; '' if it succeeded."""

    async def read(self) -> None:
        """Read the keys and use them. Raises Unreadable."""
        try:
            text = await (self._file() if self._tls is None else _fetch(self._location, self._tls))
            self._verifier.use_keys(parse_keys(text))
        except (Unreadable, UnusableKeys) as error:
            problem = str(error)
            if problem != self.problem:
                _log.warning("identity_keys_not_read", reason=problem)
            self.problem = problem
            raise Unreadable(problem) from None
        if self.problem:
            _log.info("identity_keys_read")
        self.problem = ""
        KEYS_READ.set_to_current_time()

    async def follow(self) -> None:
        """Read the keys again every REFRESH_S, for ever."""
        while True:
            await asyncio.sleep(REFRESH_S)
            try:
                await self.read()
            except Unreadable:
                continue  # logged; the last good keys stay
            except Exception as error:  # noqa: BLE001 - without this task no key would ever leave
                self.problem = repr(error)[:200]
                _log.error("identity_keys_not_read", reason=self.problem)

    async def _file(self) -> bytes:
        try:
            return await asyncio.to_thread(Path(self._location).read_bytes)
        except OSError as error:
            raise Unreadable(f"cannot be read: {error.strerror}") from None


async def _fetch(url: str, tls: ssl.SSLContext) -> bytes:
    """The body at the URL. A redirect is not followed: it could lead to anyone's keys."""
    # 8 MB that a replica without a URL does not need.
    import aiohttp  # noqa: PLC0415

    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=FETCH_S)) as session,
            session.get(url, allow_redirects=False, ssl=tls) as response,
        ):
            if response.status != 200:
                raise Unreadable(f"answered with HTTP status {response.status}")
            body = await response.content.read(BYTES_MAX + 1)
            while not response.content.at_eof() and len(body) <= BYTES_MAX:
                body += await response.content.read(BYTES_MAX + 1 - len(body))
    except (aiohttp.ClientError, TimeoutError) as error:
        raise Unreadable(f"does not answer ({type(error).__name__})") from None
    if len(body) > BYTES_MAX:
        raise Unreadable(f"is larger than {BYTES_MAX} bytes")
    return body
