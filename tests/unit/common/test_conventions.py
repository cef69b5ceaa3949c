"""The guide's table of gRPC conventions: its tests exist, and its figures are right."""

from __future__ import annotations

import re
from typing import Final

from common import paging, settings
from common.rpc import server, status, validation
from deploy.local.plan import PROJECT
from tests.unit.test_docs import missing_tests, prose

PAGE = PROJECT / "docs" / "guides" / "grpc.md"
LINK: Final = re.compile(r"\[`test_\w+`\]\(\.\./\.\./tests/[^\s)]+\)")


def test_every_convention_has_a_test_that_exists() -> None:
    """That the code exists which it names: ``tests/unit/test_docs.py``."""
    table = prose(PAGE).split("\n## Conventions")[1]
    rows = [line.strip("| ") for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 45
    for row in rows:
        convention, *_, tests = row.split(" | ")
        assert all(LINK.fullmatch(link) for link in tests.split(", ")), convention
    assert missing_tests(PAGE) == []


def test_the_guides_figures_are_those_of_the_code() -> None:
    text = " ".join(prose(PAGE).split())
    fields = settings.ServiceSettings.model_fields
    for figure in (
        f"above {validation.MESSAGE_BYTES_MAX // 1024} KiB",
        f"message above {server.RECEIVE_BYTES_MAX // 1024} KiB",
        f"takes {server.METADATA_BYTES_MAX // 1024} KiB",
        f"above {2 * server.METADATA_BYTES_MAX // 1024} KiB",
        f"{status.STATUS_BYTES_MAX:,} bytes",
        f"more than {paging.BYTES_MAX // 1024**2} MiB",
        f"`TALLY_DEFAULT_DEADLINE_S` ({fields['default_deadline_s'].default:g} s)",
        f"`TALLY_MAX_CONNECTION_AGE_S` ({fields['max_connection_age_s'].default:g} s)",
        f"every {server.CLIENT_PING_LEAST_MS // 1000} s",
    ):
        assert figure in text, figure
