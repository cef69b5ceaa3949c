"""The client's wheel, in a project that has a package ``common`` of its own."""

from __future__ import annotations

import asyncio
import re
import site
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
import pytest_asyncio

from common import VERSION
from common.errors import QuotaViolation
from deploy.kubernetes import release
from deploy.local.plan import PROJECT
from deploy.package import client
from protos import generate
from tally.balance.v1 import balance_pb2
from tests.support.balances import won
from tests.support.fake_server import Received, fake_server, refusal

README: Final = (client.HERE / "README.md").read_text(encoding="utf-8")
FOREIGN: Final = ("common", "protos", "buf")
"""Packages of the project that installs the wheel, and names of this project's."""
ENDS_S: Final = 60


@dataclass(frozen=True)
class Installed:
    """A project of somebody else's, in whose environment the wheel is installed."""

    wheel: Path
    sdist: Path
    project: Path
    python: Path


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    root = tmp_path_factory.mktemp("package")
    wheel, sdist = sorted(client.build(root / "dist"), key=lambda file: file.suffix, reverse=True)
    project, environment = root / "project", root / "venv"
    for name in FOREIGN:
        (project / name).mkdir(parents=True)
        (project / name / "__init__.py").write_text(f'OWNER = "{name} of another project"\n')
    venv.create(environment, symlinks=True)
    python = environment / "bin" / "python"
    pip = [str(generate.scripts() / "uv"), "pip", "install", "--quiet", "--offline", "--no-deps"]
    subprocess.run([*pip, f"--python={python}", str(wheel)], check=True)
    # The packages that the wheel requires, without this project's directories: a .pth file that is
    # found this way is not read.
    [packages] = (environment / "lib").glob("python3.*/site-packages")
    (packages / "required.pth").write_text(f"{site.getsitepackages()[0]}\n")
    return Installed(wheel, sdist, project, python)


@pytest_asyncio.fixture
async def balance() -> AsyncIterator[str]:
    """The address of a server that charges, and refuses to deduct."""
    short = refusal("FAILED_PRECONDITION", "INSUFFICIENT_FUNDS", retry_after_s=None)
    short.quota = (QuotaViolation("account:ada:KRW", "10000 are available"),)
    charged = balance_pb2.ChargeBalanceResponse(balance=balance_pb2.Balance(available=won(10_000)))
    async with fake_server(
        Received(), "one", ChargeBalance=[charged], DeductBalance=[short]
    ) as address:
        yield address


def example(address: str = "localhost:50051") -> str:
    """The program of the package's README, with the address of this service."""
    [code] = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert "localhost:50051" in code
    return str(code).replace("localhost:50051", address)


def members(wheel: Path) -> Iterator[str]:
    return (name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name)


def test_wheel_has_both_packages_typed_and_nothing_else(installed: Installed) -> None:
    names = set(members(installed.wheel))
    assert {name.split("/")[0] for name in names} == {"tally", "tally_client"}
    assert {"tally/py.typed", "tally_client/py.typed", "tally_client/service_config.json"} <= names
    sources = {
        path.relative_to(PROJECT).as_posix() for path in PROJECT.glob("tally_client/**/*.py")
    }
    stubs = PROJECT / "protos" / "gen"
    for pattern in ("tally/**/*.py", "tally/**/*.pyi"):
        sources |= {path.relative_to(stubs).as_posix() for path in stubs.glob(pattern)}
    assert sources == {name for name in names if name.endswith((".py", ".pyi"))}


def test_stubs_have_the_services_messages_without_rules(installed: Installed) -> None:
    """Same code but for the imports and the serialized descriptor."""
    with zipfile.ZipFile(installed.wheel) as wheel:
        for name in members(installed.wheel):
            if name.startswith("tally/"):
                text = wheel.read(name).decode()
                assert not re.search(r"\bbuf\b", text), name
                if name.endswith("_pb2_grpc.py"):
                    assert text == (PROJECT / "protos" / "gen" / name).read_text(), name


def test_wheel_sdist_and_services_are_of_the_projects_version(installed: Installed) -> None:
    version = release.number()
    assert version == VERSION
    assert installed.wheel.name == f"tally_client-{version}-py3-none-any.whl"
    assert installed.sdist.name == f"tally_client-{version}.tar.gz"


def test_sdist_builds_the_same_wheel_and_needs_no_compiler(
    installed: Installed, tmp_path: Path
) -> None:
    with tarfile.open(installed.sdist) as sdist:
        sdist.extractall(tmp_path, filter="data")
    [project] = tmp_path.iterdir()
    client.run_backend(project, tmp_path / "built", "--wheel")
    [again] = (tmp_path / "built").glob("*.whl")
    assert again.read_bytes() == installed.wheel.read_bytes()


async def test_program_calls_a_service_beside_its_own_common(
    installed: Installed, balance: str
) -> None:
    lines = [f"import {name}\nprint({name}.OWNER)" for name in FOREIGN]
    program = "\n".join([*lines, example(balance)])
    process = await asyncio.create_subprocess_exec(
        *(installed.python, "-c", program),
        cwd=installed.project,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), ENDS_S)
    owners = [f"{name} of another project" for name in FOREIGN]
    assert (process.returncode, err.decode()) == (0, "")
    assert out.decode().splitlines() == [*owners, "10000", "10000 are available"]


def test_strict_mypy_accepts_the_program_and_sees_the_types(
    installed: Installed, tmp_path: Path
) -> None:
    (tmp_path / "right.py").write_text(example())
    (tmp_path / "wrong.py").write_text(example().replace("won(20_000)", '"20000"'))
    mypy = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir=cache"]
    ended = subprocess.run(
        [*mypy, f"--python-executable={installed.python}", "right.py", "wrong.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    *errors, summary = ended.stdout.splitlines()
    assert re.fullmatch(
        r'wrong\.py:\d+: error: Argument "amount" .* incompatible type .*', errors[0]
    )
    assert summary == "Found 1 error in 1 file (checked 2 source files)"
