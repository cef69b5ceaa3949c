"""Identity of a server: its verifier, the keys that it follows, and the guard of its methods.

Imported only where identity is on (``common.rpc.server``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

from common.environment import SettingsError, source_of
from common.identity.jwks import Jwks, Unreadable
from common.identity.peers import PeerCertificates
from common.identity.tokens import TokenVerifier
from common.rpc.access import method_of
from common.rpc.client_address import ClientAddress
from common.rpc.guard import Callers, Guard
from common.settings import ServiceSettings


class NoKeys(Exception):  # noqa: N818 - a state, not a fault
    """The keys of tokens were never read, so no call can be admitted."""


class Identity:
    """Who may call a server. Start it before the server listens, and stop it at the end."""

    def __init__(self, settings: ServiceSettings, addresses: ClientAddress) -> None:
        verifier = TokenVerifier(
            issuer=settings.auth_issuer,
            audience=settings.auth_audience,
            leeway_s=settings.auth_leeway_s,
            role_claim=settings.auth_role_claim,
            saga_service=settings.auth_saga_service,
        )
        methods = {name: frozenset(listed) for name, listed in settings.auth_services.items()}
        of_sagas = methods.get(settings.auth_saga_service, frozenset())
        methods[settings.auth_saga_service] = of_sagas | frozenset(settings.saga_methods)
        peers = PeerCertificates(settings.peer_services, settings.auth_saga_service)
        callers = Callers(
            verifier,
            addresses,
            peers if settings.peer_bind else None,
        )
        self.guard = Guard(callers, methods)
        self._settings = settings
        self._verifier = verifier
        self._jwks = Jwks(settings.auth_jwks, verifier)
        self._following: asyncio.Task[None] | None = None

    async def start(self, services: Sequence[str]) -> None:
        """Read the keys, and follow them from now on. ``services``: those of the server.

        Raises SettingsError if they are in a file that cannot be read, or if ``auth_services``
        names a method that there is not. With a URL, an issuer that is away does not end the
        replica, which is not ready until it has keys.
        """
        _check_service_methods(self._settings, services)
        try:
            await self._jwks.read()
        except Unreadable as error:
            if "://" not in self._settings.auth_jwks:
                source = source_of(self._settings.service, "auth_jwks")
                raise SettingsError(f"{source}: {error}") from None
        self._following = asyncio.create_task(self._jwks.follow())

    def check_ready(self) -> None:
        """Raise NoKeys, with the reason, before the keys were read for the first time."""
        if not self._verifier.has_keys:
            raise NoKeys(f"{source_of(self._settings.service, 'auth_jwks')}: {self._jwks.problem}")

    async def stop(self) -> None:
        if self._following is not None:
            self._following.cancel()
            with suppress(asyncio.CancelledError):
                await self._following


def _check_service_methods(settings: ServiceSettings, services: Sequence[str]) -> None:
    """Raise SettingsError if ``auth_services`` names a method that one of the services has not.

    Methods of other services are theirs to check: all have the same setting.
    """
    for methods in settings.auth_services.values():
        for name in methods:
            if name.partition("/")[0] in services:
                try:
                    method_of(f"/{name}")
                except TypeError:
                    source = source_of(settings.service, "auth_services")
                    raise SettingsError(f"{source}: there is no method {name}") from None
