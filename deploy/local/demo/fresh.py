"""A fresh data directory for the demo, and what becomes of the one before."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from deploy.local.data_dir import Registry, locked
from deploy.local.errors import RunnerError
from deploy.local.postgres_files import PostgresFiles

MARKER: Final = "made-by-demo"
MARKER_TEXT: Final = "This data was made by `make demo`; the next `make demo` replaces it.\n"


def fresh(
    data_dir: Path, say: Callable[[str], None], *, before: Callable[[], None] = lambda: None
) -> None:
    """Make the directory anew and mark it as the demo's.

    An earlier demo's is replaced; a stack's of the user's own is moved aside and said so. Raises
    RunnerError if a stack is running there, or if it is a directory of something else. ``before``
    is called when nothing of an earlier run lives any more, and nothing has been touched yet:
    what it raises leaves everything as it was.
    """
    for left in data_dir.parent.glob(f"{data_dir.name}-replaced-*"):
        shutil.rmtree(left, ignore_errors=True)
    if data_dir.is_dir() and any(data_dir.iterdir()):
        _make_way(data_dir, say, before)
    else:
        before()
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        (data_dir / MARKER).write_text(MARKER_TEXT)
    except OSError as error:
        raise RunnerError(f"data directory {data_dir}: {error.strerror}") from error


def _make_way(data_dir: Path, say: Callable[[str], None], before: Callable[[], None]) -> None:
    mine = (data_dir / MARKER).is_file()
    if not mine and not (data_dir / "lock").is_file():
        raise RunnerError(f"data directory {data_dir}: it holds something else than a stack's data")
    stamp = time.strftime("%Y%m%d-%H%M%S")
    with locked(data_dir):
        # Of a run that was killed, something may live on for a moment.
        Registry(data_dir).clear_survivors()
        if (data_dir / "postgres").is_dir():
            PostgresFiles(
                data_dir / "postgres", data_dir / "logs" / "postgres.log"
            ).clear_survivor()
        before()
        if mine:
            aside = data_dir.with_name(f"{data_dir.name}-replaced-{stamp}")
        else:
            aside = data_dir.with_name(f"{data_dir.name}-before-demo-{stamp}")
        # In one step, so that there is never half of a directory under this name.
        data_dir.rename(aside)
    if mine:
        shutil.rmtree(aside)
    else:
        say(f"your data in {data_dir} was moved to {aside}")
