"""Authorities, the certificates that they sign, and the directories in which services find them."""

from __future__ import annotations

import datetime as dt
import ipaddress
import ssl
from collections.abc import Iterable
from pathlib import Path
from typing import Final, TypeAlias

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

from common.tls import AUTHORITIES, CERTIFICATE, KEY
from deploy.local.secret_files import write_secret
from tally_client.rpc.certificates import Certificates

PrivateKey: TypeAlias = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey
HOST: Final = "127.0.0.1"
NAME: Final = "servers.tally.test"
"""Of several servers together."""
DAY: Final = dt.timedelta(days=1)
ORDER, TILL, STRANGER = (
    f"spiffe://tally.test/ns/tally/sa/{name}" for name in ("order", "till", "x")
)


def now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


class Authority:
    """A certificate authority."""

    def __init__(self) -> None:
        self._ca = trustme.CA()

    @property
    def pem(self) -> str:
        """Its certificate."""
        return self._ca.cert_pem.bytes().decode()

    def sign(
        self,
        *names: str,
        uris: Iterable[str] = (),
        begins: dt.datetime | None = None,
        ends: dt.datetime | None = None,
        key: PrivateKey | None = None,
    ) -> tuple[str, str]:
        """A certificate for these hosts and URIs (trustme signs none for URIs), and its key."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        ca = x509.load_pem_x509_certificate(self.pem.encode())
        signer = serialization.load_pem_private_key(self._ca.private_key_pem.bytes(), None)
        assert isinstance(signer, ec.EllipticCurvePrivateKey)
        known = [*map(_name, names), *map(x509.UniformResourceIdentifier, uris)]
        made = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tally")]))
            .issuer_name(ca.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begins or now() - DAY)
            .not_valid_after(ends or now() + DAY)
            .add_extension(x509.SubjectAlternativeName(known), critical=False)
            # OpenSSL from Python 3.13 on asks for it.
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()),
                critical=False,
            )
            .sign(signer, hashes.SHA256())
        )
        return made.public_bytes(serialization.Encoding.PEM).decode(), pem_of(key)


def _name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def pem_of(key: PrivateKey, password: bytes | None = None) -> str:
    """A private key in PEM."""
    how: serialization.KeySerializationEncryption = (
        serialization.NoEncryption()
        if password is None
        else serialization.BestAvailableEncryption(password)
    )
    encoded = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how)
    return encoded.decode()


def write_certificate(
    directory: Path, signer: Authority, *trusted: Authority, uris: Iterable[str] = ()
) -> Path:
    """Write a new certificate for HOST, NAME and these URIs, and whom its user trusts."""
    directory.mkdir(exist_ok=True)
    certificate, key = signer.sign(HOST, NAME, uris=uris)
    write_trusted(directory, *(trusted or (signer,)))
    write_secret(directory / KEY, key)
    write_secret(directory / CERTIFICATE, certificate)
    return directory


def write_trusted(directory: Path, *trusted: Authority) -> None:
    """Write whom the directory's user trusts."""
    write_secret(directory / AUTHORITIES, "".join(each.pem for each in trusted))


def certificates_in(directory: Path, server_name: str | None = None) -> Certificates:
    """What a client with a certificate of its own uses."""
    own = (directory / CERTIFICATE, directory / KEY)
    return Certificates(directory / AUTHORITIES, *own, server_name)


def trusting(directory: Path) -> Certificates:
    """What a client without one uses."""
    return Certificates(directory / AUTHORITIES)


def server_context(directory: Path) -> ssl.SSLContext:
    """The TLS of a server that is not ours, such as PostgreSQL's."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / CERTIFICATE, directory / KEY)
    return context
