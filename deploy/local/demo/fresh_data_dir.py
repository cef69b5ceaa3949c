"""An empty data directory for the demo; existing data is replaced or moved aside."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from deploy.local.data_dir import locked
from deploy.local.errors import RunnerError
from deploy.local.postgres import PostgresServer

MARKER: Final = "made-by-demo"
MARKER_TEXT: Final = "This data was made by `make demo`; the next `make demo` replaces it.\n"


def prepare_data_dir(
    data_dir: Path, report: Callable[[str], None], *, before: Callable[[], None] = lambda: None
) -> None:
    """Create the directory anew and mark it as the demo's.

    Data of an earlier demo is deleted; data of the user's own stack is moved aside and reported.
    Raises RunnerError if a stack is running there, or if the directory holds something else.
    ``before`` is called when the processes of an earlier run have ended and no file has changed
    yet: if it raises, everything stays as it was.
    """
    for left in data_dir.parent.glob(f"{data_dir.name}-replaced-*"):
        shutil.rmtree(left, ignore_errors=True)
    if data_dir.is_dir() and any(data_dir.iterdir()):
        _move_away(data_dir, report, before)
    else:
        before()
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    (data_dir / MARKER).write_text(MARKER_TEXT)


def _move_away(data_dir: Path, report: Callable[[str], None], before: Callable[[], None]) -> None:
    of_demo = (data_dir / MARKER).is_file()
    if not of_demo and not (data_dir / "lock").is_file():
        raise RunnerError(f"data directory {data_dir}: it holds something else than a stack's data")
    reason = "replaced" if of_demo else "before-demo"
    aside = data_dir.with_name(f"{data_dir.name}-{reason}-{time.strftime('%Y%m%d-%H%M%S')}")
    with locked(data_dir):
        PostgresServer(data_dir / "postgres").files.stop_survivor()
        before()
        # In one step: there is never an incomplete directory of this name.
        data_dir.rename(aside)
    if of_demo:
        shutil.rmtree(aside)
    else:
        report(f"your data in {data_dir} was moved to {aside}")
