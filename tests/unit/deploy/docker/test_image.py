"""Which engine builds, and what it is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.docker import image
from deploy.docker.__main__ import main


def program(directory: Path, name: str, code: int) -> None:
    path = directory / name
    path.write_text(f'#!/bin/sh\necho "$0 $*" >> "{directory}/calls"\nexit {code}\n')
    path.chmod(0o755)


def test_an_engine_that_does_not_answer_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path, "docker", 1)
    program(tmp_path, "buildah", 0)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert image.engine() == "buildah"


def test_no_engine_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["image"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_both_images_are_built_with_the_options_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path, "podman", 0)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["image", "--base", "some:base", "--tag", "7", "--network", "host"]) == 0
    builds = [line for line in (tmp_path / "calls").read_text().splitlines() if " build " in line]
    assert len(builds) == 2
    for build, (target, name) in zip(builds, image.IMAGES.items(), strict=True):
        assert f"--target={target} --tag={name}:7" in build
        assert "--build-arg=BASE=some:base" in build
        assert build.endswith("--network host .")


def test_a_build_that_fails_is_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, "podman", 0)
    (tmp_path / "podman").write_text('#!/bin/sh\n[ "$1" = info ]\n')
    monkeypatch.setenv("PATH", str(tmp_path))
    assert image.build(base="", tag="7", options=[]) != 0
