"""A planted bug as data, and the copy of the project that it is applied to."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
_NOT_COPIED: Final = (".git", ".venv", ".tally", ".*_cache", ".hypothesis", "__pycache__")


@dataclass(frozen=True)
class Mutant:
    """A small patch that plants one bug, and the tests that have to fail with it."""

    name: str
    bug: str
    """What is wrong then, as a clause without a subject for the table."""
    file: str
    """The patched file, from the root of the project."""
    old: str
    """Text that the file has exactly once."""
    new: str
    tests: tuple[str, ...]
    """pytest's ids of tests; one of them has to fail."""

    def patched(self, text: str) -> str:
        """The file's text with the bug. Raises ValueError if the patch does not fit."""
        if text.count(self.old) != 1:
            found = text.count(self.old)
            raise ValueError(f"{self.name}: {self.file} has the old text {found} times")
        if self.old == self.new:
            raise ValueError(f"{self.name}: the patch changes nothing")
        return text.replace(self.old, self.new)


def copy_project(to: Path) -> None:
    """Copy what the tests need; the copy's packages are imported, the environment is shared."""
    shutil.copytree(ROOT, to, ignore=shutil.ignore_patterns(*_NOT_COPIED), symlinks=True)


@contextmanager
def planted(mutant: Mutant, copy: Path) -> Iterator[None]:
    """The bug in the copy, until the end of the block. Raises ValueError as ``patched``."""
    path = copy / mutant.file
    text = path.read_text()
    path.write_text(mutant.patched(text))
    try:
        yield
    finally:
        path.write_text(text)
