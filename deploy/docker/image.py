"""Builds the images with the first of docker, podman and buildah that works here."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Sequence
from typing import Final

from deploy.local.errors import RunnerError
from deploy.local.plan import PROJECT
from deploy.supply.revision import Revision

DOCKERFILE: Final = "deploy/docker/Dockerfile"
IMAGES: Final = {"server": "tally", "simulator": "tally-simulator"}
ENGINES: Final = {
    # A command that fails where an engine does not work: the docker client may have no daemon.
    "docker": ("docker", "info"),
    "podman": ("podman", "info"),
    "buildah": ("buildah", "images"),
}
ANSWER_S: Final = 30


def engine() -> str:
    """The first engine that works. Raises RunnerError."""
    for name, trial in ENGINES.items():
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            subprocess.run(trial, capture_output=True, check=True, timeout=ANSWER_S)
            return name
    raise RunnerError(f"none of {', '.join(ENGINES)} is installed here and works")


def build(*, base: str, tag: str, revision: Revision, options: Sequence[str]) -> int:
    """Build every image; returns the first exit code that is not 0. Raises RunnerError.

    ``options`` are passed to the engine.
    """
    name = engine()
    arguments = {
        "BASE": base,
        "VERSION": tag,
        "REVISION": revision.commit,
        "CREATED": revision.made.isoformat(),
    }
    given = [f"--build-arg={key}={value}" for key, value in arguments.items() if value]
    for target, image in IMAGES.items():
        what = [f"--file={DOCKERFILE}", f"--target={target}", f"--tag={image}:{tag}"]
        command = [name, "build", *what, *given, *options, "."]
        code = subprocess.run(command, cwd=PROJECT, check=False).returncode
        if code:
            return code
    return 0
