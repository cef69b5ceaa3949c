"""One format for every line, of Tally and of its libraries, without passwords."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any, Literal

import pytest
import structlog

from common import logs

URL = "postgresql://u:hunter2@db:5432/tally"


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    configuration = structlog.get_config()
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.configure(**configuration)


def configure(level: str = "info", output: Literal["json", "console"] = "json") -> None:
    logs.configure(service="balance", replica="b-1", level=level, output=output)


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_lines_of_tally_and_of_libraries_have_one_format(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure(level="warning")
    structlog.stdlib.get_logger().info("below the level")
    logging.getLogger("library").info("below the level")
    structlog.stdlib.get_logger().warning("charged", amount=1)
    logging.getLogger("library").warning("slow %s", "query")
    own, library = lines(capsys)
    for line, event in ((own, "charged"), (library, "slow query")):
        assert (line["event"], line["level"]) == (event, "warning")
        assert (line["service"], line["replica"]) == ("balance", "b-1")
        assert line["timestamp"].endswith("Z")
    assert own["amount"] == 1


@pytest.mark.parametrize("output", ["json", "console"])
@pytest.mark.parametrize(
    "text",
    [
        *(
            '\r\n{"event": "forged"}',
            "a\x1b]0;title\x07\x1b[2J",
            "a\x85b\x9b31m",
            "\0",
            "a\x0bb\x0cc",
        ),
        *("\u202egnp.exe", "a\u2028b\u2029c", "\u2066x\u2069"),
    ],
)
def test_text_of_a_field_cannot_leave_its_line(
    capsys: pytest.CaptureFixture[str], output: Literal["json", "console"], text: str
) -> None:
    configure(output=output)
    structlog.stdlib.get_logger().warning("call", user_id=text)
    written = capsys.readouterr().err
    assert len(written.splitlines()) == 1
    assert written.endswith("\n")
    assert written.removesuffix("\n").isprintable()


@pytest.mark.parametrize("output", ["json", "console"])
def test_passwords_in_urls_are_masked_everywhere(
    capsys: pytest.CaptureFixture[str], output: Literal["json", "console"]
) -> None:
    configure(output=output)
    log = structlog.stdlib.get_logger()
    secret_local = "hunter2-local"  # noqa: F841 - must not appear in the traceback

    def connect() -> None:
        raise ConnectionError(URL)

    log.info("connecting to %s", URL, url=URL, error=OSError(URL))
    try:
        connect()
    except ConnectionError:
        log.exception("failed")
        logging.getLogger("library").exception("failed at %s", URL)
    text = capsys.readouterr().err
    assert "hunter2" not in text
    assert text.count("postgresql://u:***@db:5432/tally") >= 5


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("see http://host:80/a@b and me@x", "see http://host:80/a@b and me@x"),
        (f"<{URL}?a=b>", "<postgresql://u:***@db:5432/tally?a=b>"),
        ("redis://:hunter2@h/0", "redis://:***@h/0"),
        ("redis+cluster://u:hunter2@h:1,i:2", "redis+cluster://u:***@h:1,i:2"),
    ],
)
def test_only_passwords_are_masked(text: str, expected: str) -> None:
    assert logs.masked(text) == expected
