"""Generate typed Python stubs and the service config from the .proto files.

    python -m protos.generate [--check] [--lint]

Without an option it rewrites `protos/gen`, `protos/service_config.json` and its copy in
`tally_client`. `--check` generates into a temporary directory and prints the files that differ,
`--lint` runs buf's rules; both may be given, and neither writes anything. Nothing here needs a
network: the compiler, the plugins and buf are dependencies of the project.
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
from typing import cast

from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

from protos import service_config

PROTOS = Path(__file__).resolve().parent
THIRD_PARTY = PROTOS / "third_party"
GENERATED = PROTOS / "gen"
RULES = "buf/validate/validate.proto"
"""The file of the options that are the validation rules."""


class GenerationError(Exception):
    """A program that generation or lint runs has failed, and has printed its own errors."""


def sources() -> list[str]:
    """The import path of every .proto file that gets stubs, in a fixed order.

    The validation rules are among them: the stubs import them, and no dependency ships a
    `buf.validate.validate_pb2` (protovalidate has its own, in another runtime's format).
    `google.rpc` is not: googleapis-common-protos has its stubs.
    """
    third_party = (THIRD_PARTY / "buf").rglob("*.proto")
    return sorted([*own(), *(path.relative_to(THIRD_PARTY).as_posix() for path in third_party)])


def own() -> list[str]:
    """The import path of every .proto file of Tally's."""
    return sorted(
        path.relative_to(PROTOS).as_posix() for path in (PROTOS / "tally").rglob("*.proto")
    )


def protoc(arguments: Sequence[str]) -> None:
    """Run the bundled protoc. Raises GenerationError."""
    run([sys.executable, "-m", "grpc_tools.protoc", *arguments])


def search_path() -> list[str]:
    """The options that name the directories of all sources."""
    well_known = files("grpc_tools").joinpath("_proto")
    return [f"-I{PROTOS}", f"-I{THIRD_PARTY}", f"-I{well_known}"]


def generate(target: Path) -> None:
    """Write the stubs of every source below `target`. Raises GenerationError."""
    write_stubs(target, [*search_path(), *sources()])


def generate_without_rules(target: Path) -> None:
    """Write stubs for clients below `target`: Tally's files without validation rules.

    They import no `buf.validate`. A process can have one version of that file only, and the
    client's user may have another one; services apply the rules. Raises GenerationError.
    """
    with tempfile.TemporaryDirectory(prefix="tally-client-") as scratch:
        stripped = Path(scratch, "set.binpb")
        stripped.write_bytes(without_rules(described("--include_source_info")))
        write_stubs(target, [f"--descriptor_set_in={stripped}", *own()])


def without_rules(described: bytes) -> bytes:
    """A serialized FileDescriptorSet without the rules and without their file."""
    # Where no file has defined the rules, they are unknown fields of the options.
    pool = DescriptorPool()
    pool.AddSerializedFile(descriptor_pb2.DESCRIPTOR.serialized_pb)
    message = pool.FindMessageTypeByName(FileDescriptorSet.DESCRIPTOR.full_name)
    found = cast(FileDescriptorSet, GetMessageClass(message).FromString(described))
    found.DiscardUnknownFields()
    for file in found.file:
        if RULES in file.dependency:
            file.dependency.remove(RULES)
    return found.SerializeToString()


def write_stubs(target: Path, inputs: Sequence[str]) -> None:
    """Write the stubs of the files that these arguments of protoc name below `target`."""
    target.mkdir(parents=True, exist_ok=True)
    protoc(
        [
            f"--python_out={target}",
            f"--grpc_python_out={target}",
            f"--mypy_out=quiet:{target}",
            f"--mypy_grpc_out=quiet,only_async:{target}",
            *inputs,
        ]
    )
    for module in target.rglob("*_pb2_grpc.py*"):
        # A file without a service gets a module too, which is empty.
        if "Stub" not in module.read_text():
            module.unlink()


def described(*options: str) -> bytes:
    """All sources and their imports as a serialized FileDescriptorSet. Raises GenerationError."""
    with tempfile.TemporaryDirectory(prefix="tally-described-") as scratch:
        out = Path(scratch, "set.binpb")
        written = ["--include_imports", f"--descriptor_set_out={out}"]
        protoc([*written, *options, *search_path(), *sources()])
        return out.read_bytes()


def described_services() -> list[ServiceDescriptor]:
    """The services that the sources describe. Raises GenerationError."""
    return service_config.services(FileDescriptorSet.FromString(described()))


def published_config() -> str:
    """The service config that the sources give, as text. Raises GenerationError."""
    return service_config.text(described_services())


def write() -> None:
    """Replace `protos/gen` and the service config; after an error the old ones are unchanged."""
    config = published_config()
    with tempfile.TemporaryDirectory(dir=PROTOS, prefix=".gen-") as scratch:
        fresh = Path(scratch, "gen")
        generate(fresh)
        shutil.rmtree(GENERATED, ignore_errors=True)
        fresh.rename(GENERATED)
    for file in configs():
        file.write_text(config, encoding="utf-8")


def drifted() -> list[str]:
    """The stubs that are missing, superfluous or different from what the sources give."""
    with tempfile.TemporaryDirectory(prefix="tally-stubs-") as scratch:
        fresh = Path(scratch)
        generate(fresh)
        expected, actual = contents(fresh), contents(GENERATED)
    return sorted(
        name for name in expected.keys() | actual.keys() if expected.get(name) != actual.get(name)
    )


def configs() -> tuple[Path, Path]:
    """The published service config, and its copy in the Python client."""
    return service_config.PUBLISHED, service_config.OF_CLIENT


def drifted_configs() -> list[Path]:
    """The service configs that are missing or differ from what the sources give."""
    expected = published_config()
    return [
        file
        for file in configs()
        if not file.is_file() or file.read_text(encoding="utf-8") != expected
    ]


def stale() -> list[str]:
    """The path in the project of every generated file that differs from what the sources give."""
    stubs = [f"protos/gen/{name}" for name in drifted()]
    return stubs + [f"{file.parent.name}/{file.name}" for file in drifted_configs()]


def contents(root: Path) -> dict[str, bytes]:
    """Relative path → bytes of every generated file below `root`."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*.py*")
        if path.suffix in {".py", ".pyi"}
    }


def lint() -> None:
    """Run buf's lint and format rules, and check whom each RPC admits. Raises GenerationError."""
    buf = scripts() / "buf"
    run([str(buf), "lint"], cwd=PROTOS)
    run([str(buf), "format", "--diff", "--exit-code", "--path", "tally"], cwd=PROTOS)
    # It needs the stubs, without which everything else here works.
    from protos import access  # noqa: PLC0415

    if wrong := access.problems(described_services()):
        print(*wrong, sep="\n")
        raise GenerationError


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
