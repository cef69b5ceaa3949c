"""The secret files of the Compose stack: their modes, and that they are made once."""

from __future__ import annotations

import stat
from pathlib import Path

from deploy.docker import secret_files
from tests.unit.deploy.kubernetes.setting_rules import SECRETS


def test_secrets_are_made_once(tmp_path: Path) -> None:
    directory = tmp_path / "compose"
    assert secret_files.write(directory)
    made = {file: file.read_text() for file in directory.rglob("*") if file.is_file()}
    wanted = {directory / name / key for name, keys in SECRETS.items() for key in keys}
    assert made.keys() == wanted
    # The directory is closed to other users; the user of a container can read a mounted file.
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in made} == {0o444}
    assert not secret_files.write(directory)
    assert made == {file: file.read_text() for file in made}
    assert [each.name for each in tmp_path.iterdir()] == ["compose"]
