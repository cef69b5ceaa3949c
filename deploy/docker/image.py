"""Builds the images with the first of docker, podman and buildah that works here."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from typing import Final

from deploy.local.plan import PROJECT

DOCKERFILE: Final = "deploy/docker/Dockerfile"
IMAGES: Final = {"server": "tally", "simulator": "tally-simulator"}
ENGINES: Final = {
    # A command that fails where an engine does not work: the docker client may have no daemon.
    "docker": ("docker", "info"),
    "podman": ("podman", "info"),
    "buildah": ("buildah", "images"),
}
ANSWER_S: Final = 30


class NoEngine(Exception):  # noqa: N818 - a fact, shown to the operator
    """No installed program can build images."""

    def __init__(self) -> None:
        super().__init__(f"none of {', '.join(ENGINES)} is installed here and works")


def engine() -> str:
    """The first engine that works. Raises NoEngine."""
    for name, trial in ENGINES.items():
        if shutil.which(name) is None:
            continue
        try:
            answer = subprocess.run(trial, capture_output=True, check=False, timeout=ANSWER_S)
        except subprocess.TimeoutExpired:
            continue
        if answer.returncode == 0:
            return name
    raise NoEngine


def command(
    name: str, target: str, *, base: str, tag: str, revision: str, options: Sequence[str] = ()
) -> list[str]:
    """The command that builds a target. ``options`` are passed to the engine."""
    arguments = {"BASE": base, "VERSION": tag, "REVISION": revision}
    given = [f"--build-arg={key}={value}" for key, value in arguments.items() if value]
    image = [f"--file={DOCKERFILE}", f"--target={target}", f"--tag={IMAGES[target]}:{tag}"]
    return [name, "build", *image, *given, *options, "."]


def build(*, base: str, tag: str, options: Sequence[str]) -> int:
    """Build every image; returns the first exit code that is not 0. Raises NoEngine."""
    name, revision = engine(), _revision()
    for target in IMAGES:
        made = command(name, target, base=base, tag=tag, revision=revision, options=options)
        code = subprocess.run(made, cwd=PROJECT, check=False).returncode
        if code:
            return code
    return 0


def _revision() -> str:
    git = shutil.which("git")
    if git is None:
        return ""
    answer = subprocess.run(
        [git, "rev-parse", "HEAD"], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    return answer.stdout.strip()
