"""One loop per process, no process that forks, and no channel outside the running loop."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from deploy.local.plan import PROJECT

SERVED: Final = sorted(
    path
    for folder in (PROJECT / "common", *PROJECT.glob("*_service"))
    for path in folder.rglob("*.py")
)
"""What a service's process may import."""
RUNTIME: Final = PROJECT / "common" / "runtime.py"

LOOP_MAKERS: Final = frozenset(
    {"asyncio.run", "asyncio.Runner", "uvloop.run", "uvloop.new_event_loop"}
    | {f"asyncio.{name}" for name in ("new_event_loop", "set_event_loop", "get_event_loop")}
)
# gRPC's threads do not live on in a child, nor do the connections of a pool belong to it.
FORKS: Final = frozenset({"os.fork", "os.forkpty", "concurrent.futures.ProcessPoolExecutor"})
FORKING_MODULES: Final = frozenset({"multiprocessing", "subprocess"})


def used(path: Path) -> set[str]:
    """Dotted names that a module uses, and modules that it imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            found.add(ast.unparse(node))
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def against(path: Path) -> set[str]:
    """What a module does of what only a process's beginning may do, or nobody."""
    names = used(path)
    modules = {name.partition(".")[0] for name in names}
    return (names & (LOOP_MAKERS | FORKS)) | (modules & FORKING_MODULES)


def test_only_the_runtime_makes_a_loop_and_nobody_forks() -> None:
    assert len(SERVED) > 50
    found = {path.relative_to(PROJECT).as_posix(): against(path) for path in SERVED}
    assert {path: names for path, names in found.items() if names} == {
        RUNTIME.relative_to(PROJECT).as_posix(): {"uvloop.run"}
    }


@pytest.mark.parametrize(
    "text",
    [
        "import asyncio\nasyncio.run(main())",
        "from asyncio import new_event_loop",
        "import os\nif os.fork() == 0: ...",
        "from multiprocessing.pool import Pool",
        "from concurrent.futures import ProcessPoolExecutor",
        "import concurrent.futures\nconcurrent.futures.ProcessPoolExecutor()",
        "import subprocess",
    ],
)
def test_what_makes_a_loop_or_forks_is_noticed(text: str, tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text(text)
    assert against(module)


IMPORT_ALL: Final = """
import asyncio, importlib, sys
import grpc

def made(*args, **kwargs):
    raise AssertionError("made while modules are imported")

for owner in (grpc, grpc.aio):
    owner.insecure_channel = owner.secure_channel = owner.server = made
asyncio.new_event_loop = made
for name in sys.argv[1:]:
    importlib.import_module(name)
print(len(sys.argv) - 1)
"""


def imported(*names: str) -> subprocess.CompletedProcess[str]:
    """A process that imports these modules, where neither channel nor server nor loop can be."""
    return subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, *names],
        capture_output=True,
        text=True,
        check=False,
        cwd=PROJECT,
    )


def test_importing_makes_no_channel_no_server_and_no_loop() -> None:
    """They belong to the loop that runs when they are made: imports have none."""
    names = [
        ".".join(path.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__")
        for path in (*SERVED, *(PROJECT / "tally_client").rglob("*.py"))
        # Alembic imports these while it migrates.
        if path.name != "__main__.py" and "migrations" not in path.parts
    ]
    done = imported(*names)
    assert (done.returncode, done.stdout) == (0, f"{len(names)}\n"), done.stderr


def test_a_channel_that_an_import_makes_is_noticed() -> None:
    done = imported("tests.unit.common.eager_channel")
    assert done.returncode != 0
    assert "made while modules are imported" in done.stderr
