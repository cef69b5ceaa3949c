"""`python -m deploy.kubernetes`: renders and checks manifests, and prints Secrets for `local`."""

from __future__ import annotations

import sys
from typing import Final

from deploy.kubernetes import manifests, prometheus_rule, release, rendering, validation
from deploy.kubernetes import secrets as secrets_of
from deploy.kubernetes.manifests import OVERLAYS, ManifestsError
from deploy.local.command_line import Flag, make_app, run_app

GOOD, BAD = 0, 1
NO_KUBECTL: Final = "kubectl is not installed"

app = make_app(
    "deploy.kubernetes", "Render and check the manifests; print Secrets for the overlay local."
)


@app.command
def render(*, check: Flag = False) -> int:
    """Write rendered/<overlay>.yaml for the release in pyproject.toml, and the PrometheusRule.

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
        prometheus_rule.write()
        for overlay in OVERLAYS:
            rendering.write(program, overlay)
        return GOOD
    found = release.drift() + prometheus_rule.drift()
    if program is None:
        print(f"{NO_KUBECTL}: the renderings were not compared with their sources")
    else:
        for overlay in OVERLAYS:
            found += rendering.drift(program, overlay)
    if found:
        found.append("the manifests are not up to date: run `make manifests`")
    return _judged(found)


@app.command
def validate(*, kubernetes: tuple[str, ...] = validation.VERSIONS) -> int:
    """Check every rendered object and Secret against Kubernetes' schemas.

    Parameters
    ----------
    kubernetes
        The versions to check against, such as 1.37.
    """
    objects = [each for overlay in OVERLAYS for each in manifests.objects(overlay)]
    return _judged(validation.problems([*objects, *secrets_of.local_secret_objects()], kubernetes))


def _judged(found: list[str]) -> int:
    """The exit code, after what was found has been printed."""
    sys.stderr.write("".join(f"{line}\n" for line in found))
    return BAD if found else GOOD


@app.command
def secrets() -> int:
    """Print the Secrets of `local` and `multi-replica-test` with new passwords.

    Apply them once: PostgreSQL reads its passwords only when its volume is new.
    """
    print(secrets_of.as_yaml(secrets_of.local_secret_objects()).rstrip())
    return GOOD


if __name__ == "__main__":
    run_app(app)
