"""A container of the test cluster writes to its volumes only, as with a read-only root."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.local.plan import PROJECT
from tests.support.cluster import confine
from tests.support.cluster.containers import IMAGE_ENVIRONMENT, Process
from tests.support.cluster.manifest import User

POD = User(10001, 10001, 10001)
WRITE = "import sys; open(sys.argv[1], 'w').close()"
WHO = "import os, common; print(os.geteuid(), os.getegid(), os.getgroups())"

needs_landlock = pytest.mark.skipif(
    confine.landlock_version() <= 0, reason="this kernel has no Landlock"
)


def confined(tmp_path: Path, code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run code as a container with the one volume ``tmp_path / "volume"``."""
    directory, volume = tmp_path / "root", tmp_path / "volume"
    directory.mkdir(mode=0o555, exist_ok=True)
    volume.mkdir(exist_ok=True)
    if os.geteuid() == 0:
        os.chown(volume, POD.uid, POD.gid)
    command = (sys.executable, "-c", code, *map(str, arguments))
    process = Process(command, IMAGE_ENVIRONMENT, directory, (volume,), POD)
    return subprocess.run(
        process.confined,
        cwd=directory,
        env=process.environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_writable_volume_is_writable(tmp_path: Path) -> None:
    done = confined(tmp_path, WRITE, tmp_path / "volume/file")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "volume/file").exists()


@needs_landlock
@pytest.mark.parametrize("place", [Path(), PROJECT, Path("/tmp"), Path("/dev/shm")])
def test_no_other_directory_is_writable(tmp_path: Path, place: Path) -> None:
    file = place / "tally-test-of-a-write"
    done = confined(tmp_path, WRITE, file)
    assert "PermissionError" in done.stderr
    assert not (tmp_path / "root" / file).exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_root_runs_a_container_as_the_manifest_s_user(tmp_path: Path) -> None:
    done = confined(tmp_path, WHO)
    assert done.stdout.strip() == f"{POD.uid} {POD.gid} []", done.stderr
