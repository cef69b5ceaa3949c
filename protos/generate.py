"""Generate typed Python stubs and the service config from the .proto files.

    python -m protos.generate [--check] [--lint]

Without an option it rewrites `protos/gen` and `protos/service_config.json`. `--check` generates
into a temporary directory and prints the files that differ, `--lint` runs buf's rules;
both may be given, and neither writes anything. Nothing here needs a network: the compiler, the
plugins and buf are dependencies of the project.
"""

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorSet

from protos import service_config

PROTOS = Path(__file__).resolve().parent
THIRD_PARTY = PROTOS / "third_party"
GENERATED = PROTOS / "gen"


class GenerationError(Exception):
    """A program that generation or lint runs has failed, and has printed its own errors."""


def sources() -> list[str]:
    """The import path of every .proto file that gets stubs, in a fixed order.

    The validation rules are among them: the stubs import them, and no dependency ships a
    `buf.validate.validate_pb2` (protovalidate has its own, in another runtime's format).
    `google.rpc` is not: googleapis-common-protos has its stubs.
    """
    tally = ((PROTOS, path) for path in (PROTOS / "tally").rglob("*.proto"))
    third_party = ((THIRD_PARTY, path) for path in (THIRD_PARTY / "buf").rglob("*.proto"))
    return sorted(path.relative_to(root).as_posix() for root, path in (*tally, *third_party))


def protoc(arguments: Sequence[str]) -> None:
    """Run the bundled protoc over all sources. Raises GenerationError."""
    well_known = files("grpc_tools").joinpath("_proto")
    run(
        [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            f"-I{PROTOS}",
            f"-I{THIRD_PARTY}",
            f"-I{well_known}",
            *arguments,
            *sources(),
        ]
    )


def generate(target: Path) -> None:
    """Write the stubs of every source below `target`. Raises GenerationError."""
    target.mkdir(parents=True, exist_ok=True)
    protoc(
        [
            f"--python_out={target}",
            f"--grpc_python_out={target}",
            f"--mypy_out=quiet:{target}",
            f"--mypy_grpc_out=quiet,only_async:{target}",
        ]
    )
    for module in target.rglob("*_pb2_grpc.py*"):
        # A file without a service gets a module too, which is empty.
        if "Stub" not in module.read_text():
            module.unlink()


def published_config() -> str:
    """The service config that the sources give, as text. Raises GenerationError."""
    with tempfile.TemporaryDirectory(prefix="tally-config-") as scratch:
        described = Path(scratch, "set.binpb")
        protoc(["--include_imports", f"--descriptor_set_out={described}"])
        files = FileDescriptorSet.FromString(described.read_bytes())
    return service_config.text(service_config.services(files))


def write() -> None:
    """Replace `protos/gen` and the service config; after an error the old ones are unchanged."""
    config = published_config()
    with tempfile.TemporaryDirectory(dir=PROTOS, prefix=".gen-") as scratch:
        fresh = Path(scratch, "gen")
        generate(fresh)
        shutil.rmtree(GENERATED, ignore_errors=True)
        fresh.rename(GENERATED)
    service_config.PUBLISHED.write_text(config, encoding="utf-8")


def drifted() -> list[str]:
    """The stubs that are missing, superfluous or different from what the sources give."""
    with tempfile.TemporaryDirectory(prefix="tally-stubs-") as scratch:
        fresh = Path(scratch)
        generate(fresh)
        expected, actual = contents(fresh), contents(GENERATED)
    return sorted(
        name for name in expected.keys() | actual.keys() if expected.get(name) != actual.get(name)
    )


def config_drifted() -> bool:
    """Whether the published service config is missing or differs from what the sources give."""
    published = service_config.PUBLISHED
    return not published.is_file() or published.read_text(encoding="utf-8") != published_config()


def stale() -> list[str]:
    """The path in the project of every generated file that differs from what the sources give."""
    stubs = [f"protos/gen/{name}" for name in drifted()]
    return stubs + [f"protos/{service_config.PUBLISHED.name}"] * config_drifted()


def contents(root: Path) -> dict[str, bytes]:
    """Relative path → bytes of every generated file below `root`."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*.py*")
        if path.suffix in {".py", ".pyi"}
    }


def lint() -> None:
    """Run buf's lint and format rules over the sources. Raises GenerationError."""
    buf = scripts() / "buf"
    run([str(buf), "lint"], cwd=PROTOS)
    run([str(buf), "format", "--diff", "--exit-code", "--path", "tally"], cwd=PROTOS)


def scripts() -> Path:
    """The directory of programs of this interpreter's environment, activated or not."""
    return Path(sysconfig.get_path("scripts"))


def run(command: list[str], cwd: Path | None = None) -> None:
    """Run a program that prints its own errors. Raises GenerationError if it fails."""
    # protoc looks its plugins up in PATH.
    path = os.pathsep.join([str(scripts()), os.environ.get("PATH", "")])
    environment = {**os.environ, "PATH": path}
    if subprocess.run(command, cwd=cwd, env=environment, check=False).returncode:
        raise GenerationError


def main(arguments: Sequence[str] | None = None) -> int:
    """Generate, or check and lint. 0: done, or no findings; 1: errors or drift."""
    parser = argparse.ArgumentParser(prog="python -m protos.generate", description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="print generated files that are not current"
    )
    parser.add_argument("--lint", action="store_true", help="lint the .proto files")
    options = parser.parse_args(arguments)
    try:
        if options.lint:
            lint()
        if options.check and (names := stale()):
            print(*(f"{name} is not what the .proto files give" for name in names), sep="\n")
            print("run `make stubs` and commit the result")
            return 1
        if not (options.check or options.lint):
            write()
    except GenerationError:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
