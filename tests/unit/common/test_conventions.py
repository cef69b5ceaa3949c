"""The guide's table of gRPC conventions: each row has code that is there and a test that exists."""

from __future__ import annotations

import re

from common import pipeline, server, settings, status
from deploy.local.plan import PROJECT
from tests.unit.test_docs import missing_tests, prose

PAGE = PROJECT / "docs" / "guides" / "grpc.md"


def rows() -> list[list[str]]:
    table = prose(PAGE).split("\n## What is kept to")[1]
    lines = [line.strip("| ") for line in table.splitlines() if line.startswith("| ")]
    return [line.split(" | ") for line in lines[1:]]


def test_every_convention_has_code_and_a_test_that_exist() -> None:
    assert len(rows()) >= 30
    for convention, _, where, test in rows():
        for path in re.findall(r"`([^`]+)`", where):
            assert (PROJECT / path).is_file(), convention
        assert re.fullmatch(r"\[`test_\w+`\]\(\.\./\.\./tests/\S+\)", test), convention
    assert missing_tests(PAGE) == []


def test_the_figures_are_those_of_the_code() -> None:
    text = prose(PAGE)
    fields = settings.ServiceSettings.model_fields
    for told in (
        f"above {pipeline.MESSAGE_BYTES_MAX // 1024} KiB",
        f"message above {server.RECEIVE_BYTES_MAX // 1024} KiB",
        f"takes {server.METADATA_BYTES_MAX // 1024} KiB",
        f"above {2 * server.METADATA_BYTES_MAX // 1024} KiB",
        f"{status.STATUS_BYTES_MAX:,} bytes",
        f"`TALLY_DEFAULT_DEADLINE_S` ({fields['default_deadline_s'].default:g} s)",
        f"`TALLY_MAX_CONNECTION_AGE_S` ({fields['max_connection_age_s'].default:g} s)",
        f"every {server.CLIENT_PING_LEAST_MS // 1000} s",
    ):
        assert told in text, told
