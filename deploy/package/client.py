"""The client's distribution: its sources laid out as a project of their own, and built."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from deploy.kubernetes import release
from deploy.local.errors import RunnerError
from deploy.local.plan import PROJECT
from protos import generate

HERE: Final = Path(__file__).parent
CLIENT: Final = "tally_client"
STUBS: Final = "tally"
EPOCH: Final = "315532800"
"""1980-01-01, the earliest time in a zip file: two builds of one version have the same bytes."""


def lay_out(project: Path) -> None:
    """Write the client's project into the directory ``project``, which does not exist.

    The stubs are generated for it without validation rules: see ``protos.generate``. Raises
    GenerationError.
    """
    compiled = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PROJECT / CLIENT, project / CLIENT, ignore=compiled)
    generate.generate_without_rules(project)
    (project / STUBS / "py.typed").touch()
    for file in (HERE / "pyproject.toml", HERE / "README.md", PROJECT / "LICENSE"):
        shutil.copy(file, project)
    (project / "VERSION").write_text(f"{release.number()}\n", encoding="utf-8")


def build(out: Path) -> list[Path]:
    """Build the sdist, and the wheel from it; returns their paths in ``out``. Raises RunnerError.

    With the backend that is installed here, so that nothing is fetched.
    """
    with tempfile.TemporaryDirectory(prefix="tally-dist-") as scratch:
        project, built = Path(scratch, "project"), Path(scratch, "built")
        try:
            lay_out(project)
        except generate.GenerationError:
            raise RunnerError("the stubs cannot be generated: see the errors above") from None
        run_backend(project, built)
        out.mkdir(parents=True, exist_ok=True)
        return [
            Path(shutil.copy(file, out))
            for file in sorted(built.iterdir())
            if file.suffix in {".whl", ".gz"}
        ]


def run_backend(project: Path, out: Path, *options: str) -> None:
    """Run ``uv build`` on a project or an sdist. Raises RunnerError with its output."""
    uv = str(generate.scripts() / "uv")
    offline = ["--offline", "--no-build-isolation", f"--python={sys.executable}"]
    command = [uv, "build", *offline, f"--out-dir={out}", *options, str(project)]
    environment = {"SOURCE_DATE_EPOCH": EPOCH, **os.environ}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise RunnerError(f"uv build failed:\n{ended.stdout}{ended.stderr}".rstrip())
