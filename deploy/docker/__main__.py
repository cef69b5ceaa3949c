"""``python -m deploy.docker``: builds the images; makes the secret files of the Compose stack."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from deploy.docker import image, secret_files
from deploy.kubernetes import release


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m deploy.docker", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    building = commands.add_parser("image", help="build tally and tally-simulator")
    building.add_argument("--base", default="", help="base image (default: the Dockerfile's)")
    building.add_argument(
        "--tag", default=release.number(), help="tag of the images (default: the version)"
    )
    making = commands.add_parser("secrets", help="make passwords, unless they exist")
    making.add_argument("--directory", type=Path, default=secret_files.DIRECTORY)
    options, rest = parser.parse_known_args(arguments)
    if options.command == "image":
        try:
            return image.build(base=options.base, tag=options.tag, options=rest)
        except image.NoEngine as error:
            print(error, file=sys.stderr)
            return 1
    if rest:
        parser.error(f"unknown: {' '.join(rest)}")
    made = secret_files.write(options.directory)
    print(f"{'made' if made else 'kept'} {options.directory}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
