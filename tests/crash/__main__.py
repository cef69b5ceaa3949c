"""`python -m tests.crash`: the failpoints of the services, one name per line."""

from __future__ import annotations

import sys

from tests.crash.places import NAMES

sys.stdout.writelines(f"{name}\n" for name in sorted(NAMES))
