"""The Prometheus page over TLS."""

from __future__ import annotations

import socket
import ssl
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter

from common.metrics_page import MetricsPage
from common.tls import AUTHORITIES, CERTIFICATE, UnusableCertificate
from tests.support.certificates import HOST, Authority, write_certificate
from tests.support.time_limits import LONG_S


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write_certificate(tmp_path / "own", Authority())


@pytest.fixture
def page(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MetricsPage]:
    monkeypatch.setattr("common.metrics_page.REFRESH_S", 0.0)
    registry = CollectorRegistry()
    Counter("trials", "Trials.", registry=registry).inc(3)
    opened = MetricsPage(HOST, 0, registry, tls_dir=directory)
    yield opened
    opened.close()


def get(page: MetricsPage, trusted: Path) -> str:
    context = ssl.create_default_context(cafile=str(trusted))
    url = f"https://{HOST}:{page.port}/metrics"
    with urllib.request.urlopen(url, timeout=LONG_S, context=context) as reply:
        return str(reply.read().decode())


def test_the_page_is_served_with_the_certificate(page: MetricsPage, directory: Path) -> None:
    assert "trials_total 3.0" in get(page, directory / AUTHORITIES)


def test_plaintext_is_refused(page: MetricsPage, directory: Path) -> None:
    with pytest.raises(OSError, match=r".+"):
        urllib.request.urlopen(f"http://{HOST}:{page.port}/metrics", timeout=LONG_S)
    assert get(page, directory / AUTHORITIES)


def test_a_connection_that_sends_nothing_holds_up_nobody(
    page: MetricsPage, directory: Path
) -> None:
    """Its handshake never ends."""
    with socket.create_connection((HOST, page.port)):
        assert get(page, directory / AUTHORITIES)


def test_a_new_certificate_is_used_and_a_broken_one_is_not(
    page: MetricsPage, directory: Path, tmp_path: Path
) -> None:
    write_certificate(directory, Authority())
    assert get(page, directory / AUTHORITIES)
    (directory / CERTIFICATE).write_text("broken")
    assert get(page, directory / AUTHORITIES)


def test_a_page_without_its_certificate_does_not_start(directory: Path) -> None:
    (directory / CERTIFICATE).unlink()
    with pytest.raises(UnusableCertificate, match="No such file"):
        MetricsPage(HOST, 0, tls_dir=directory)
