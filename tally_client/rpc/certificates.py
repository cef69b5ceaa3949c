"""The files of a caller's TLS: whom it trusts, and its own certificate if it has one."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import grpc


class Pems(NamedTuple):
    """What the files have, in PEM."""

    authorities: bytes | None
    key: bytes | None
    certificate: bytes | None

    def credentials(self) -> grpc.ChannelCredentials:
        """What a channel is opened with."""
        return grpc.ssl_channel_credentials(*self)


@dataclass(frozen=True, slots=True)
class Certificates:
    """Files in PEM. They are read again every 10 s: replace them before they expire."""

    ca_file: str | Path | None = None
    """The authorities that sign the servers' certificates. None: gRPC's own list of public ones."""
    certificate_file: str | Path | None = None
    """The caller's own certificate, with those between it and its authority, for a port that asks
    for one; None on a port that takes tokens."""
    key_file: str | Path | None = None
    """The key of that certificate, not encrypted."""
    server_name: str | None = None
    """The name that the servers' certificates must have. None: the host of the address; a list of
    addresses has no such host."""

    def __post_init__(self) -> None:
        if (self.certificate_file is None) != (self.key_file is None):
            raise ValueError("certificate_file and key_file belong together")

    def read(self) -> Pems:
        """The files as they are now. Raises ValueError, in one line, if they cannot be used."""
        found = Pems(_bytes(self.ca_file), _bytes(self.key_file), _bytes(self.certificate_file))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if found.authorities is not None:
            try:
                context.load_verify_locations(cadata=found.authorities.decode("ascii"))
            except (ssl.SSLError, ValueError):
                raise ValueError(f"{self.ca_file}: has no certificate in PEM") from None
        if self.certificate_file is not None:
            try:
                # With the password, an encrypted key is an error and no prompt.
                context.load_cert_chain(self.certificate_file, self.key_file, password="")
            except (ssl.SSLError, ValueError, OSError):
                raise ValueError(
                    f"{self.certificate_file} and {self.key_file}: are no certificate and its key"
                ) from None
        return found


def _bytes(file: str | Path | None) -> bytes | None:
    if file is None:
        return None
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise ValueError(f"{file}: cannot be read: {error.strerror}") from None
