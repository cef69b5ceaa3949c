"""The guide's table of gRPC conventions: the code and the tests that it names exist."""

from __future__ import annotations

import re
from typing import Final

import pytest

from common import settings
from common.rpc import server, status, validation
from deploy.local.plan import PROJECT
from tests.unit.test_docs import missing_tests, prose

PAGE = PROJECT / "docs" / "guides" / "grpc.md"
LINK: Final = re.compile(r"\[`test_\w+`\]\(\.\./\.\./tests/[^\s)]+\)")

EXPECTED: Final = {
    "no internals in errors": {"no internals in errors"},
    "no handler that ends in a cancellation of others": {"a status in every case"},
    "machine-readable errors": {"rich errors", "rich errors arrive"},
    "health v1": {"readiness", "starts NOT_SERVING", "liveness apart"},
    "drain": {"drain", "drain, seen by a client"},
    "overload": {"overload", "health exempt from it"},
    "deadlines": {"deadlines passed on", "a deadline where none is set", "failing early"},
    "client balancing": {"balancing", "balancing by health"},
    "retries": {"retries", "retries end", "pushback"},
    "connection rotation": {"connection age"},
    "keepalive": {"keepalive agreement"},
    "reflection": {"reflection", "reflection is a setting"},
    "tracing": {"tracing", "tracing leaves health alone"},
    "context": {"context"},
    "ports": {"ports"},
    "metadata, sizes": {"message limit", "metadata limit", "NUL in text", "no narrow numbers"},
    "uvloop": {"uvloop"},
    "asyncpg and cancellation": {"cancellation and PostgreSQL"},
    "redis-py and cancellation": {"cancellation and Redis"},
    "fork, loops": {"one loop", "channels in the running loop", "one channel per peer"},
}
"""What is expected of a gRPC service in Python, and the rows about it."""


def rows() -> list[list[str]]:
    table = prose(PAGE).split("\n## Conventions")[1]
    lines = [line.strip("| ") for line in table.splitlines() if line.startswith("| ")]
    return [line.split(" | ") for line in lines[1:]]


def test_every_convention_has_code_and_a_test_that_exist() -> None:
    assert len(rows()) >= 30
    for convention, _, where, test in rows():
        for path in re.findall(r"`([^`]+)`", where):
            assert (PROJECT / path).is_file(), convention
        assert all(LINK.fullmatch(link) for link in test.split(", ")), convention
    assert missing_tests(PAGE) == []


@pytest.mark.parametrize("expected", EXPECTED)
def test_every_expectation_has_its_rows(expected: str) -> None:
    assert EXPECTED[expected] - {convention for convention, *_ in rows()} == set()


def test_no_row_is_there_twice() -> None:
    conventions = [convention for convention, *_ in rows()]
    assert sorted(conventions) == sorted(set(conventions))


def test_the_guides_figures_are_those_of_the_code() -> None:
    text = " ".join(prose(PAGE).split())
    fields = settings.ServiceSettings.model_fields
    for figure in (
        f"above {validation.MESSAGE_BYTES_MAX // 1024} KiB",
        f"message above {server.RECEIVE_BYTES_MAX // 1024} KiB",
        f"takes {server.METADATA_BYTES_MAX // 1024} KiB",
        f"above {2 * server.METADATA_BYTES_MAX // 1024} KiB",
        f"{status.STATUS_BYTES_MAX:,} bytes",
        f"`TALLY_DEFAULT_DEADLINE_S` ({fields['default_deadline_s'].default:g} s)",
        f"`TALLY_MAX_CONNECTION_AGE_S` ({fields['max_connection_age_s'].default:g} s)",
        f"every {server.CLIENT_PING_LEAST_MS // 1000} s",
    ):
        assert figure in text, figure
