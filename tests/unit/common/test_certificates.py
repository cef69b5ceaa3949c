"""The certificate of a server: which files it uses, and what stays if they cannot be used."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from structlog.testing import capture_logs

from common.certificates import CertificateFiles
from common.tls import AUTHORITIES, CERTIFICATE, KEY, UnusableCertificate
from tests.support.certificates import (
    DAY,
    HOST,
    Authority,
    PrivateKey,
    now,
    pem_of,
    write_certificate,
)
from tests.support.payments import until
from tests.support.waits import until_true

AUTHORITY = Authority()
HOUR = dt.timedelta(hours=1)


def signed(directory: Path, certificate: str, key: str) -> None:
    (directory / CERTIFICATE).write_text(certificate)
    (directory / KEY).write_text(key)


def between(begins: dt.timedelta, ends: dt.timedelta) -> Callable[[Path], None]:
    return lambda directory: signed(
        directory, *AUTHORITY.sign(HOST, begins=now() + begins, ends=now() + ends)
    )


def with_key(key: PrivateKey) -> Callable[[Path], None]:
    return lambda directory: signed(directory, *AUTHORITY.sign(HOST, key=key))


def encrypted_key(directory: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    certificate, _ = AUTHORITY.sign(HOST, key=key)
    signed(directory, certificate, pem_of(key, b"secret"))


REFUSED_KEYS: dict[str, PrivateKey] = {
    "Ed25519": ed25519.Ed25519PrivateKey.generate(),
    "P-224": ec.generate_private_key(ec.SECP224R1()),
    "P-521": ec.generate_private_key(ec.SECP521R1()),
    "secp256k1": ec.generate_private_key(ec.SECP256K1()),
    "RSA of 1024 bits": rsa.generate_private_key(65537, 1024),
}
UNUSABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no certificate": (lambda at: (at / CERTIFICATE).unlink(), "tls.crt: cannot be read: No such"),
    "no key": (lambda at: (at / KEY).unlink(), "tls.key: cannot be read: No such"),
    "no authorities": (lambda at: (at / AUTHORITIES).unlink(), "ca.crt: cannot be read: No such"),
    "garbage": (lambda at: (at / CERTIFICATE).write_text("x"), "tls.crt: is not a certificate"),
    "empty": (lambda at: (at / CERTIFICATE).write_text(""), "tls.crt: is not a certificate"),
    "garbage as key": (lambda at: (at / KEY).write_text("x"), "tls.key: is not a private key"),
    "garbage as authorities": (
        lambda at: (at / AUTHORITIES).write_text("x"),
        "ca.crt: is not a certificate",
    ),
    "the key of another": (
        lambda at: (at / KEY).write_text(AUTHORITY.sign(HOST)[1]),
        "tls.key: is not the key of tls.crt",
    ),
    "an encrypted key": (encrypted_key, "tls.key: is not a private key in PEM, unencrypted"),
    **{
        f"a key of {name}": (with_key(key), "tls.key: is neither ECDSA of P-256")
        for name, key in REFUSED_KEYS.items()
    },
    "expired": (between(-DAY, -HOUR), "tls.crt: has expired"),
    "not valid yet": (between(HOUR, DAY), "tls.crt: is not valid yet"),
}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write_certificate(tmp_path / "own", AUTHORITY)


@pytest.mark.parametrize("case", UNUSABLE)
def test_files_that_cannot_be_used_are_named(directory: Path, case: str) -> None:
    damage, problem = UNUSABLE[case]
    damage(directory)
    with pytest.raises(UnusableCertificate) as caught:
        CertificateFiles(directory, "peers", mutual=True)
    assert str(caught.value).startswith(problem)
    assert "PRIVATE KEY" not in str(caught.value)


def test_authorities_are_read_for_mutual_tls_only(directory: Path) -> None:
    (directory / AUTHORITIES).unlink()
    assert CertificateFiles(directory, "clients").pems.authorities is None


async def test_an_unforeseen_error_does_not_end_the_reading(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.certificates.REFRESH_S", 0.01)
    files = CertificateFiles(directory, "clients")
    first, read = files.pems, files._read
    failing = iter([MemoryError("no memory"), RuntimeError("cannot start a thread")])

    def fail_first() -> Any:
        if error := next(failing, None):
            raise error
        return read()

    monkeypatch.setattr(files, "_read", fail_first)
    write_certificate(directory, AUTHORITY)
    following = asyncio.create_task(files.follow())
    with capture_logs() as logged:
        await until_true(lambda: files.pems != first)
    assert [line["reason"] for line in logged if line["event"] == "certificate_not_read"] == [
        "MemoryError('no memory')",
        "RuntimeError('cannot start a thread')",
    ]
    following.cancel()


async def test_what_cannot_be_used_changes_nothing_and_is_logged_once(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.certificates.REFRESH_S", 0.01)
    files = CertificateFiles(directory, "peers", mutual=True)
    first = files.pems
    assert first.authorities is not None
    good = {CERTIFICATE: first.certificate, KEY: first.key, AUTHORITIES: first.authorities}
    following = asyncio.create_task(files.follow())
    with capture_logs() as logged:
        for damage, problem in UNUSABLE.values():
            damage(directory)

            async def noted(problem: str = problem) -> bool:
                return files._problem.startswith(problem)

            await until(noted)
            assert files.pems == first
            for name, content in good.items():
                (directory / name).write_bytes(content)

            async def well() -> bool:
                return files._problem == ""

            await until(well)
    warned = [line["reason"] for line in logged if line["event"] == "certificate_not_read"]
    # While two files are written one after the other, they may not belong together.
    assert {text.partition(": cannot")[0] for text in warned} >= {CERTIFICATE, KEY, AUTHORITIES}
    write_certificate(directory, AUTHORITY)

    async def replaced() -> bool:
        return files.pems.certificate != first.certificate

    await until(replaced)
    following.cancel()
