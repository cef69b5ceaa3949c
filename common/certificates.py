"""The certificate of a server, from files that are read again: it changes without a restart.

A directory has the files under the names that a Secret of Kubernetes gives them. If what they have
cannot be used, the last good ones stay. New connections get what a task has read last; they read no
file themselves.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Final, NamedTuple

import grpc
import structlog
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    SECP384R1,
    EllipticCurvePrivateKey,
)
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from common.metrics import CERTIFICATE_EXPIRY
from common.tls import AUTHORITIES, CERTIFICATE, KEY, REFRESH_S, UnusableCertificate

CURVES: Final = (SECP256R1, SECP384R1)
"""Of ECDSA keys. gRPC's clients refuse P-521 and Ed25519; its servers do not listen with others."""
RSA_BITS_MIN: Final = 2048

_log = structlog.stdlib.get_logger()


class Pems(NamedTuple):
    """What the files have, in PEM."""

    certificate: bytes
    key: bytes
    authorities: bytes | None

    def configuration(self) -> grpc.ServerCertificateConfiguration:
        """The same for gRPC."""
        return grpc.ssl_server_certificate_configuration(
            [(self.key, self.certificate)], self.authorities
        )


class CertificateFiles:
    """The certificate of one port, and whom it admits."""

    def __init__(self, directory: Path, port: str, *, mutual: bool = False) -> None:
        """``port`` names it in the log and the metrics. ``mutual``: clients need a certificate too,
        signed by one of AUTHORITIES. Raises UnusableCertificate."""
        self._directory = directory
        self._port = port
        self._mutual = mutual
        self._problem = ""
        self._use(*self._read())

    async def follow(self) -> None:
        """Read the files again every REFRESH_S, for ever."""
        while True:
            await asyncio.sleep(REFRESH_S)
            try:
                pems, expires_s = await asyncio.to_thread(self._read)
            except UnusableCertificate as error:
                self._note(str(error))
            except Exception as error:  # noqa: BLE001 - without this task the certificate expires
                self._note(repr(error)[:200])
            else:
                if pems != self.pems or self._problem:
                    self._use(pems, expires_s)
                    self._problem = ""

    def _note(self, problem: str) -> None:
        if problem != self._problem:
            _log.warning("certificate_not_read", port=self._port, reason=problem)
        self._problem = problem

    def credentials(self) -> grpc.ServerCredentials:
        """Of a gRPC port: a new connection gets what was read last. For one port each."""
        served = self.pems

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            # On a thread of gRPC's, before each handshake. None: what the port has is still right,
            # which keeps its TLS sessions.
            nonlocal served
            if served == self.pems:
                return None
            served = self.pems
            return served.configuration()

        return grpc.dynamic_ssl_server_credentials(
            served.configuration(),
            fetch,  # type: ignore[arg-type]  # the stubs leave out None
            require_client_authentication=self._mutual,
        )

    def _use(self, pems: Pems, expires_s: float) -> None:
        self.pems = pems
        """What was read last and can be used."""
        CERTIFICATE_EXPIRY.labels(self._port).set(expires_s)
        expires = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(expires_s))
        _log.info("certificate_read", port=self._port, expires=expires)

    def _read(self) -> tuple[Pems, float]:
        """The files as they are now, and when the certificate expires, in Unix time.

        Kubernetes replaces a whole directory at once, but others may not: of two files that do not
        belong together, none is used. Raises UnusableCertificate.
        """
        pems = Pems(
            _file(self._directory / CERTIFICATE),
            _file(self._directory / KEY),
            _file(self._directory / AUTHORITIES) if self._mutual else None,
        )
        if pems.authorities is not None:
            _certificates(pems.authorities, AUTHORITIES)
        return pems, _expiry_s(pems)


def _expiry_s(pems: Pems) -> float:
    """When the certificate expires, in Unix time. Raises UnusableCertificate."""
    certificate = _certificates(pems.certificate, CERTIFICATE)[0]
    try:
        key = load_pem_private_key(pems.key, None)
        belongs = key.public_key() == certificate.public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise UnusableCertificate(f"{KEY}: is not a private key in PEM, unencrypted") from None
    if not _is_served(key):
        raise UnusableCertificate(
            f"{KEY}: is neither ECDSA of P-256 or P-384 nor RSA of {RSA_BITS_MIN} bits or more"
        )
    if not belongs:
        raise UnusableCertificate(f"{KEY}: is not the key of {CERTIFICATE}")
    now_s = time.time()  # noqa: TID251 - a certificate has no other clock
    if now_s < certificate.not_valid_before_utc.timestamp():
        raise UnusableCertificate(f"{CERTIFICATE}: is not valid yet")
    expires_s = certificate.not_valid_after_utc.timestamp()
    if expires_s <= now_s:
        raise UnusableCertificate(f"{CERTIFICATE}: has expired")
    return expires_s


def _is_served(key: object) -> bool:
    """Whether gRPC can serve the key, so that its clients accept it, and it is long enough."""
    if isinstance(key, EllipticCurvePrivateKey):
        return isinstance(key.curve, CURVES)
    return isinstance(key, RSAPrivateKey) and key.key_size >= RSA_BITS_MIN


def _certificates(pem: bytes, name: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except (ValueError, x509.InvalidVersion):
        raise UnusableCertificate(f"{name}: is not a certificate in PEM") from None


def _file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UnusableCertificate(f"{path.name}: cannot be read: {error.strerror}") from None
