"""``python -m deploy.docker``: builds the images; makes the secret files of the Compose stack."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import cyclopts

from deploy.docker import image as images
from deploy.docker import secret_files
from deploy.kubernetes import release
from deploy.local.command_line import make_app, run_app
from deploy.local.plan import PROJECT
from deploy.supply import sbom as documents
from deploy.supply.revision import Revision

app = make_app("deploy.docker", "Build the images; make the secret files of the Compose stack.")


@app.command
def image(
    *options: Annotated[str, cyclopts.Parameter(allow_leading_hyphen=True)],
    base: str = "",
    tag: str | None = None,
    sbom: Path = PROJECT / "dist" / "sbom",
) -> int:
    """Build tally and tally-simulator, and write the SBOM of each.

    Parameters
    ----------
    options
        Further options, for the program that builds.
    base
        Base image; by default the Dockerfile's.
    tag
        Tag of the images; by default the version.
    sbom
        The directory to write the SBOMs into.
    """
    tag = tag or release.number()
    # Read once: the labels and the SBOMs have the same.
    revision = Revision.of_checkout()
    code = images.build(base=base, tag=tag, revision=revision, options=options)
    if code == 0:
        for name in images.IMAGES.values():
            print(documents.write(name, tag, revision, sbom))
    return code


@app.command
def secrets(*, directory: Path = secret_files.DIRECTORY) -> int:
    """Make passwords, unless they exist."""
    made = secret_files.write(directory)
    print(f"{'made' if made else 'kept'} {directory}")
    return 0


if __name__ == "__main__":
    run_app(app)
