"""One form for every line, ours and the libraries', and no passwords in it."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any, Literal

import pytest
import structlog

from common import logs

if TYPE_CHECKING:
    from collections.abc import Iterator

URL = "postgresql://u:hunter2@db:5432/tally"


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def configure(level: str = "info", output: Literal["json", "console"] = "json") -> None:
    logs.configure(service="balance", replica="b-1", level=level, output=output)


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_our_lines_and_the_libraries_have_one_form(capsys: pytest.CaptureFixture[str]) -> None:
    configure()
    structlog.get_logger("ours").info("charged", amount=1)
    logging.getLogger("theirs").warning("slow %s", "query")
    ours, theirs = lines(capsys)
    for line, event, level in ((ours, "charged", "info"), (theirs, "slow query", "warning")):
        assert (line["event"], line["level"]) == (event, level)
        assert (line["service"], line["replica"]) == ("balance", "b-1")
        assert line["timestamp"].endswith("Z")
    assert ours["amount"] == 1


def test_lines_below_the_level_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    configure(level="warning")
    structlog.get_logger("ours").info("left out")
    logging.getLogger("theirs").info("left out")
    structlog.get_logger("ours").warning("told")
    assert [line["event"] for line in lines(capsys)] == ["told"]


@pytest.mark.parametrize("output", ["json", "console"])
def test_passwords_in_urls_are_masked_everywhere(
    capsys: pytest.CaptureFixture[str], output: Literal["json", "console"]
) -> None:
    configure(output=output)
    log = structlog.get_logger("ours")
    secret_local = "hunter2-local"  # noqa: F841 - must not appear in the traceback

    def connect() -> None:
        raise ConnectionError(URL)

    log.info("connecting to %s", URL, url=URL, error=OSError(URL))
    try:
        connect()
    except ConnectionError:
        log.exception("failed")
        logging.getLogger("theirs").exception("failed at %s", URL)
    told = capsys.readouterr().err
    assert "hunter2" not in told
    assert told.count("postgresql://u:***@db:5432/tally") >= 5


def test_masking_leaves_the_rest_alone() -> None:
    assert logs.masked("see http://host:80/a@b and me@x") == "see http://host:80/a@b and me@x"
    assert logs.masked(f"<{URL}?a=b>") == "<postgresql://u:***@db:5432/tally?a=b>"
    assert logs.masked("redis://:hunter2@h/0") == "redis://:***@h/0"
