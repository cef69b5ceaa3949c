"""The wall clocks of replicas, which can be set: by libfaketime (apt-get install libfaketime).

Their monotonic clocks stay. Without the library, clocks are left alone and the run says so.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

STEP_S: Final = 3_600
_LIBRARY: Final = "faketime/libfaketimeMT.so.1"
_FOLDERS: Final = ("/usr/lib/*", "/usr/lib", "/usr/local/lib")
_SHOW: Final = "import time; print(time.time())"


@dataclass(frozen=True, slots=True)
class Clocks:
    """The wall clocks of named processes."""

    library: Path
    directory: Path
    """A file for each process, with the seconds that its clock is ahead."""

    @classmethod
    def found(cls, directory: Path) -> Clocks | None:
        """Clocks that can be set; None if the library is not installed, or sets none."""
        for folder in _FOLDERS:
            for library in sorted(Path("/").glob(f"{folder}/{_LIBRARY}"[1:])):
                clocks = cls(library, directory)
                directory.mkdir(parents=True, exist_ok=True)
                if clocks._work():
                    return clocks
        return None

    def environment(self, name: str) -> dict[str, str]:
        """The variables with which a process has the clock of this name."""
        file = self._file(name)
        if not file.exists():
            self.set(name, 0)
        return {
            "LD_PRELOAD": str(self.library),
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_CACHE_DURATION": "1",
        }

    def set(self, name: str, ahead_s: int) -> None:
        """Set a clock. Its process notices within a second."""
        new = self._file(name).with_suffix(".new")
        new.write_text(f"{ahead_s:+d}\n")
        new.replace(self._file(name))

    def _file(self, name: str) -> Path:
        return self.directory / name

    def _work(self) -> bool:
        self.set("tried", -STEP_S)
        shown = subprocess.run(
            [sys.executable, "-c", _SHOW],
            env=os.environ | self.environment("tried"),
            capture_output=True,
            text=True,
            check=False,
        ).stdout.split()
        return bool(shown) and float(shown[0]) < self._file("tried").stat().st_mtime - 60
