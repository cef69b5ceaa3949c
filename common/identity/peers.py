"""The services that call over a connection with a certificate of their own (mutual TLS).

The port has verified the certificate. It names its service by a URI (SPIFFE's X.509-SVID): one,
``spiffe://<trust domain>/<path>``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Final

import structlog

from common.identity.caller import Caller, Kind
from common.identity.errors import NotPermitted

_CERTIFICATE: Final = "x509_pem_cert"
_SPIFFE_ID: Final = "peer_spiffe_id"
"""gRPC leaves it out if the certificate has several URIs, or one of another form."""

_log = structlog.stdlib.get_logger()


class PeerCertificates:
    """The callers that certificates name."""

    def __init__(self, services: Mapping[str, str], saga_service: str) -> None:
        """``services``: the service of each URI. ``saga_service``: that of sagas."""
        self._callers = {
            uri: Caller(Kind.SERVICE, name, math.inf, runs_sagas=name == saga_service)
            for uri, name in services.items()
        }
        self._refused: str | None = None

    def caller_of(self, properties: Mapping[str, Iterable[bytes]]) -> Caller | None:
        """The service that the connection's certificate names; None if it has no certificate.

        ``properties``: gRPC's, of the connection. Raises NotPermitted for a certificate that names
        no service which is known here.
        """
        if _CERTIFICATE not in properties:
            return None
        uri = b"".join(properties.get(_SPIFFE_ID, ())).decode(errors="replace")
        caller = self._callers.get(uri)
        if caller is not None:
            return caller
        if uri != self._refused:
            _log.warning("peer_refused", uri=uri)
        self._refused = uri
        raise NotPermitted("The URI in the caller's certificate is that of no service.", uri=uri)
