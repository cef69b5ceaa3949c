"""One loop per process, no process that forks, and no channel outside the running loop."""

from __future__ import annotations

import ast
import subprocess
import sys
from typing import Final

import pytest

from deploy.local.plan import PROJECT

SERVED: Final = sorted(
    path
    for folder in (PROJECT / "common", *PROJECT.glob("*_service"))
    for path in folder.rglob("*.py")
)
"""What a service's process may import."""

LOOP_MAKERS: Final = frozenset(
    {"asyncio.run", "asyncio.Runner", "uvloop.run", "uvloop.new_event_loop"}
    | {f"asyncio.{name}" for name in ("new_event_loop", "set_event_loop", "get_event_loop")}
)
# gRPC's threads do not exist in a child, and connections of a pool do not belong to it.
FORKS: Final = frozenset({"os.fork", "os.forkpty", "concurrent.futures.ProcessPoolExecutor"})
FORKING_MODULES: Final = frozenset({"multiprocessing", "subprocess"})


def forbidden_names(source: str) -> set[str]:
    """Names that a module uses and that create a loop or a process."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            names.add(ast.unparse(node))
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    modules = {name.partition(".")[0] for name in names}
    return (names & (LOOP_MAKERS | FORKS)) | (modules & FORKING_MODULES)


def test_only_the_runtime_creates_a_loop_and_no_module_forks() -> None:
    assert len(SERVED) > 50
    found = {
        path.relative_to(PROJECT).as_posix(): forbidden_names(path.read_text(encoding="utf-8"))
        for path in SERVED
    }
    assert {path: names for path, names in found.items() if names} == {
        "common/service.py": {"uvloop.run"}
    }


@pytest.mark.parametrize(
    "source",
    [
        "import asyncio\nasyncio.run(main())",
        "from asyncio import new_event_loop",
        "import os\nif os.fork() == 0: ...",
        "from multiprocessing.pool import Pool",
        "import concurrent.futures\nconcurrent.futures.ProcessPoolExecutor()",
    ],
)
def test_control_a_loop_or_a_fork_is_found(source: str) -> None:
    assert forbidden_names(source)


IMPORT_ALL: Final = """
import asyncio, importlib, sys
import grpc

def create(*args, **kwargs):
    raise AssertionError("created by an import")

for owner in (grpc, grpc.aio):
    owner.insecure_channel = owner.secure_channel = owner.server = create
asyncio.new_event_loop = create
for name in sys.argv[1:]:
    importlib.import_module(name)
print(len(sys.argv) - 1)
"""


def test_no_import_creates_a_channel_a_server_or_a_loop() -> None:
    """They belong to the loop that runs when they are created, and imports have none."""
    names = [
        ".".join(path.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__")
        for path in (*SERVED, *(PROJECT / "tally_client").rglob("*.py"))
        # Alembic imports these while it migrates.
        if path.name != "__main__.py" and "migrations" not in path.parts
    ]
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, *names],
        capture_output=True,
        text=True,
        check=False,
        cwd=PROJECT,
    )
    assert (done.returncode, done.stdout) == (0, f"{len(names)}\n"), done.stderr
