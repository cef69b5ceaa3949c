"""TLS to the gateway: which certificates the adapter accepts."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

import pytest

from payment_service.gateway.outcomes import Confirmed, NotSent
from tests.integration.gateway.adapters import adapter, charge, pays
from tests.support.gateway_wire import gateway_wire


class Authority:
    """A certificate authority, and what it signs."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder / name
        self.folder.mkdir()
        self.file = self.folder / "ca.pem"
        made = ["-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-days", "2"]
        self.made = made
        self._openssl(
            "req", "-x509", *made, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=c"
        )

    def server(self, name: str) -> ssl.SSLContext:
        """A server's TLS with a new certificate for ``name``."""
        named = ["-subj", "/CN=gateway", "-addext", f"subjectAltName={name}"]
        signed = ["-CA", "ca.pem", "-CAkey", "ca.key"]
        files = ["-keyout", "server.key", "-out", "server.pem"]
        self._openssl("req", "-x509", *self.made, *files, *named, *signed)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.folder / "server.pem", self.folder / "server.key")
        return context

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self.folder, check=True, capture_output=True)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command")
async def test_only_a_trusted_certificate_for_the_name_is_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trusted, other = Authority(tmp_path, "trusted"), Authority(tmp_path, "other")
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted.file))
    async with gateway_wire(pays, tls=trusted.server("IP:127.0.0.1")) as wire:
        port = int(wire.url.rpartition(":")[2])
        async with adapter(wire.url) as toss:
            assert type(await toss.confirm(charge(1))) is Confirmed
            # The gateway restarts with another certificate.
            wire.stop()
            wire.drop_connections()
            await wire.until_open(0)
            for authority, name, outcome in [
                (other, "IP:127.0.0.1", NotSent("ClientConnectorCertificateError")),
                (trusted, "DNS:other.test", NotSent("ClientConnectorCertificateError")),
                (trusted, "IP:127.0.0.1", Confirmed("transaction-1", charge(2).amount)),
            ]:
                async with gateway_wire(pays, port=port, tls=authority.server(name)):
                    assert await toss.confirm(charge(2)) == outcome
