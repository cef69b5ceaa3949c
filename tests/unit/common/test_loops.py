"""One loop per process, no process that forks, and no channel outside the running loop."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Final

import pytest

from deploy.local.plan import PROJECT

SERVED: Final = sorted(
    path
    for folder in (PROJECT / "common", PROJECT / "tally_client", *PROJECT.glob("*_service"))
    for path in folder.rglob("*.py")
)
"""What a service's process may import."""

FORBIDDEN: Final = re.compile(
    r"\b(asyncio\.(run|Runner)|uvloop\.run|(new|set|get)_event_loop"
    r"|from (asyncio|os|uvloop) import"
    # gRPC's threads do not exist in a child, and connections of a pool do not belong to it.
    r"|os\.fork(pty)?|multiprocessing|subprocess|ProcessPoolExecutor)\b"
)
"""What creates a loop or a process, or hides that in an import."""


def test_only_the_runtime_creates_a_loop_and_no_module_forks() -> None:
    found = {
        path.relative_to(PROJECT).as_posix(): names
        for path in SERVED
        if (names := [each[0] for each in FORBIDDEN.finditer(path.read_text(encoding="utf-8"))])
    }
    assert found == {"common/service.py": ["uvloop.run"]}


@pytest.mark.parametrize(
    "source",
    [
        "asyncio.run(main())",
        "from asyncio import new_event_loop",
        "from uvloop import run",
        "if os.fork() == 0: ...",
        "from multiprocessing.pool import Pool",
        "concurrent.futures.ProcessPoolExecutor()",
    ],
)
def test_a_loop_or_a_fork_is_found(source: str) -> None:
    """The control of the pattern."""
    assert FORBIDDEN.search(source)


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
