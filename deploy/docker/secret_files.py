"""Makes the secret files of the Compose stack, once and with passwords of its own."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Final

from deploy.kubernetes.secrets import local_secret_objects
from deploy.local.plan import PROJECT

DIRECTORY: Final = PROJECT / ".tally" / "compose"


def write(directory: Path = DIRECTORY) -> bool:
    """Write ``directory/<secret>/<key>`` and return True; return False if the directory exists.

    The secrets, and the hosts in their addresses, are those of the Kubernetes overlay ``local``.
    They never change: PostgreSQL reads its passwords only when its volume is new. All are written
    or none.
    """
    if directory.exists():
        return False
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".compose-", dir=directory.parent) as made:
        for each in local_secret_objects():
            folder = Path(made, each["metadata"]["name"])
            folder.mkdir()
            for key, value in each["stringData"].items():
                file = folder / key
                file.write_text(value, encoding="utf-8")
                # Mounted with this mode, and read by the containers' users. Other users of this
                # machine cannot reach the file: its directory was made for its owner alone.
                file.chmod(0o444)
        Path(made).rename(directory)
    return True
