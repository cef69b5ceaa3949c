"""``python -m deploy.supply``: known vulnerabilities of the packages, and the images' SBOMs."""

from __future__ import annotations

from pathlib import Path

from deploy.kubernetes import release
from deploy.local.command_line import Flag, make_app, report, run_app
from deploy.local.plan import PROJECT
from deploy.supply import advisories
from deploy.supply import sbom as documents
from deploy.supply.packages import LOCKS
from deploy.supply.revision import Revision

app = make_app("deploy.supply", "Look up vulnerabilities of the packages; write SBOMs.")


@app.command(name="advisories")
def look_up(*, strict: Flag = False) -> int:
    """Look up known vulnerabilities of all locked packages; exit 1 if there are any.

    Parameters
    ----------
    strict
        Exit 1 also for what could not be looked up, as before a release.
    """
    problem = None
    try:
        found = advisories.look_up()
    except advisories.AdvisoriesUnreachableError as error:
        problem, found = error, error.report
    for each in sorted(map(str, found.findings)):
        report(f"vulnerable: {each}")
    if found.findings:
        report("Update them (requirements/*.in, `make lock`; docs/guides/supply-chain.md).")
    if problem is not None:
        report(f"Advisories: NOT CHECKED, the database does not answer: {problem}")
        return int(strict or bool(found.findings))
    if found.unchecked:
        report(f"Advisories: NOT CHECKED for {', '.join(sorted(found.unchecked))}")
    report(f"Advisories: {len(found.findings)} for {len(found.checked)} packages")
    return int(bool(found.findings or (strict and found.unchecked)))


@app.command
def sbom(*, tag: str | None = None, out: Path = PROJECT / "dist" / "sbom") -> int:
    """Write the SBOM of each image.

    Parameters
    ----------
    tag
        Tag of the images; by default the version.
    out
        The directory to write them into.
    """
    revision = Revision.of_checkout()
    for image in LOCKS:
        report(str(documents.write(image, tag or release.number(), revision, out)))
    return 0


if __name__ == "__main__":
    run_app(app)
