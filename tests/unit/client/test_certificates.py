"""The files of a client's TLS."""

from __future__ import annotations

from pathlib import Path

import pytest

from tally_client import Certificates
from tally_client.rpc.channels import open_channel
from tests.support.certificates import Authority, certificates_in, trusting, write_certificate


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write_certificate(tmp_path / "own", Authority())


def test_files_are_read_as_they_are(directory: Path) -> None:
    found = certificates_in(directory).read()
    assert found.authorities == (directory / "ca.crt").read_bytes()
    assert found.certificate == (directory / "tls.crt").read_bytes()
    assert found.key == (directory / "tls.key").read_bytes()
    assert trusting(directory).read() == (found.authorities, None, None)
    assert Certificates().read() == (None, None, None)


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("ca.crt", None, "ca.crt: cannot be read: No such file"),
        ("ca.crt", "x", "ca.crt: has no certificate in PEM"),
        ("tls.crt", None, "tls.crt: cannot be read: No such file"),
        ("tls.crt", "x", "are no certificate and its key"),
        ("tls.key", Authority().sign("other")[1], "are no certificate and its key"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(
    directory: Path, file: str, content: str | None, says: str
) -> None:
    if content is None:
        (directory / file).unlink()
    else:
        (directory / file).write_text(content)
    with pytest.raises(ValueError, match=says) as caught:
        certificates_in(directory).read()
    assert file in str(caught.value)
    assert "PRIVATE KEY" not in str(caught.value)


async def test_a_list_of_addresses_needs_the_servers_name(directory: Path) -> None:
    with pytest.raises(ValueError, match="server_name"):
        open_channel("127.0.0.1:1,127.0.0.1:2", certificates=trusting(directory))


def test_a_certificate_needs_its_key(directory: Path) -> None:
    with pytest.raises(ValueError, match="belong together"):
        Certificates(certificate_file=directory / "tls.crt")
