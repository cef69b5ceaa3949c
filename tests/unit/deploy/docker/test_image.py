"""The engine that builds the images, and its arguments."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.docker import image
from deploy.docker.__main__ import app
from deploy.local.errors import RunnerError

Program = Callable[[str, str], None]


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """Makes a program the only one of its name; it runs a line of shell and records its calls."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def make(name: str, line: str) -> None:
        path = tmp_path / name
        path.write_text(f'#!/bin/sh\necho "$0 $*" >> "{tmp_path}/calls"\n{line}\n')
        path.chmod(0o755)

    return make


def test_an_engine_that_does_not_answer_is_skipped(program: Program) -> None:
    program("docker", "exit 1")
    program("buildah", "exit 0")
    assert image.engine() == "buildah"


@pytest.mark.usefixtures("program")
def test_no_engine_is_an_error_of_one_line() -> None:
    with pytest.raises(RunnerError, match=r"^none of docker, podman, buildah .* works$"):
        app(["image"])


def test_both_images_are_built_with_the_options(program: Program, tmp_path: Path) -> None:
    program("podman", "exit 0")
    given = ["image", "--base", "some:base", "--tag", "7", "--sbom", str(tmp_path / "sbom")]
    assert app([*given, "--network", "host"], result_action="return_value") == 0
    builds = [line for line in (tmp_path / "calls").read_text().splitlines() if " build " in line]
    for build, (target, name) in zip(builds, image.IMAGES.items(), strict=True):
        assert f"--target={target} --tag={name}:7" in build
        assert "--build-arg=BASE=some:base" in build
        # Without git on this PATH.
        assert "--build-arg=REVISION=unknown --build-arg=CREATED=1980-01-01T00:00:00+00:00" in build
        assert build.endswith("--network host .")
    assert {path.name for path in (tmp_path / "sbom").iterdir()} == {
        f"{name}-7.cdx.json" for name in image.IMAGES.values()
    }


def test_the_first_build_that_fails_is_the_last(program: Program, tmp_path: Path) -> None:
    """And has no SBOM."""
    program("podman", '[ "$1" = info ]')
    given = ["image", "--sbom", str(tmp_path / "sbom")]
    assert app(given, result_action="return_value") != 0
    assert (tmp_path / "calls").read_text().count(" build ") == 1
    assert not (tmp_path / "sbom").exists()
