"""TLS of a server: its files by name, what the Prometheus page uses of them, and their error.

``common.certificates`` reads them for gRPC.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Final

CERTIFICATE: Final = "tls.crt"
"""The server's certificate, with those between it and its authority."""
KEY: Final = "tls.key"
AUTHORITIES: Final = "ca.crt"
"""The authorities that sign the certificates of the other side."""
REFRESH_S: Final = 10.0
"""Time between two reads of the files."""


class UnusableCertificate(Exception):  # noqa: N818 - a state, not a fault
    """The files have no certificate that a server can use. The text says why, in one line."""


def page_context(directory: Path) -> ssl.SSLContext:
    """What an HTTPS server accepts connections with. Raises UnusableCertificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        # With the password, an encrypted key is an error and no prompt.
        context.load_cert_chain(directory / CERTIFICATE, directory / KEY, password="")
    except OSError as error:
        raise UnusableCertificate(
            f"{directory}: {error.strerror or 'no certificate and its key'}"
        ) from None
    return context
