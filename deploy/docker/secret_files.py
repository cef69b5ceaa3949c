"""The secrets of the Compose stack, as files: made once, with the passwords of nobody else."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Final

from deploy.kubernetes.secrets import local_secret_objects
from deploy.local.plan import PROJECT

DIRECTORY: Final = PROJECT / ".tally" / "compose"


def write(directory: Path = DIRECTORY) -> bool:
    """Write ``directory/<secret>/<key>`` and return True; return False if they are there already.

    The secrets are those of Kubernetes' ``local`` overlay, and so are the hosts in the addresses.
    They are never changed: PostgreSQL learns its passwords when its volume is new. All are written
    or none.
    """
    if directory.exists():
        return False
    directory.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=".compose-", dir=directory.parent))
    try:
        for each in local_secret_objects():
            folder = made / each["metadata"]["name"]
            folder.mkdir()
            for key, value in each["stringData"].items():
                file = folder / key
                file.write_text(value, encoding="utf-8")
                # Mounted as they are, and read by the containers' users. On this machine nobody
                # gets that far: mkdtemp made the directory for its owner alone.
                os.chmod(file, 0o444)  # noqa: PTH101
        made.rename(directory)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    return True
