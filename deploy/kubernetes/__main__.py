"""`python -m deploy.kubernetes`: renders and checks manifests, and prints Secrets for `local`."""

from __future__ import annotations

import subprocess
import sys
from typing import Annotated, Final

import cyclopts

from deploy.kubernetes import manifests, release, rendering, validation
from deploy.kubernetes import secrets as secrets_of
from deploy.kubernetes.manifests import OVERLAYS, ManifestsError

GOOD, BAD = 0, 1
NO_KUBECTL: Final = "kubectl is not installed"

app = cyclopts.App(
    name="python -m deploy.kubernetes",
    help="Render and check the manifests; print Secrets for the overlay local.",
    help_formatter="plain",
    help_format="plaintext",
    version_flags=(),
    print_error=False,
    exit_on_error=False,
)


@app.command
def render(*, check: Annotated[bool, cyclopts.Parameter(negative="")] = False) -> int:
    """Write rendered/<overlay>.yaml for the release in pyproject.toml.

    Parameters
    ----------
    check
        Write nothing; exit 1 if a rendering differs from its sources. Without kubectl nothing is
        compared: the check prints a note and passes.
    """
    program = rendering.kubectl()
    if not check:
        if program is None:
            raise ManifestsError(NO_KUBECTL)
        release.write()
        for overlay in OVERLAYS:
            rendering.write(program, overlay)
        return GOOD
    found = release.drift()
    if program is None:
        _print(f"{NO_KUBECTL}: the renderings were not compared with their sources")
    else:
        for overlay in OVERLAYS:
            found += rendering.drift(program, overlay)
    if found:
        _print_errors([*found, "the manifests are not up to date: run `make manifests`"])
    return BAD if found else GOOD


@app.command
def validate(*, kubernetes: tuple[str, ...] = validation.VERSIONS) -> int:
    """Check every rendered object and Secret against Kubernetes' schemas.

    Parameters
    ----------
    kubernetes
        The versions to check against, such as 1.37.
    """
    objects = [each for overlay in OVERLAYS for each in manifests.objects(overlay)]
    found = validation.problems([*objects, *secrets_of.local_secret_objects()], kubernetes)
    _print_errors(found)
    return BAD if found else GOOD


@app.command
def secrets() -> int:
    """Print the Secrets of `local` and `multi-replica-test` with new passwords.

    Apply them once: PostgreSQL reads its passwords only when its volume is new.
    """
    _print(secrets_of.as_yaml(secrets_of.local_secret_objects()).rstrip())
    return GOOD


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")


def _print_errors(lines: list[str]) -> None:
    sys.stderr.write("".join(f"{line}\n" for line in lines))


def main() -> None:
    try:
        sys.exit(app(sys.argv[1:]))
    except (ManifestsError, cyclopts.CycloptsError, OSError, subprocess.SubprocessError) as error:
        sys.exit(f"error: {str(error).strip()}")


if __name__ == "__main__":
    main()
