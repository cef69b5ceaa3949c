"""``python -m deploy.package``: builds the client's wheel and sdist."""

from __future__ import annotations

from pathlib import Path

from deploy.local.command_line import make_app, run_app
from deploy.local.plan import PROJECT
from deploy.package import client

app = make_app("deploy.package", "Build the wheel and the sdist of the client.")


@app.default
def build(*, out: Path = PROJECT / "dist") -> int:
    """Build both for the version in pyproject.toml.

    Parameters
    ----------
    out
        The directory to write them into. Files of the same names are replaced.
    """
    for file in client.build(out):
        print(file)
    return 0


if __name__ == "__main__":
    run_app(app)
