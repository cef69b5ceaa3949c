"""docs/guides/logs.md lists every event that the code logs, and none that it does not."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/guides/logs.md"
CODE = (
    *("common", "balance_service", "coupon_service", "order_service", "payment_service"),
    "deploy/audit",
)
LEVELS = {"debug", "info", "warning", "error", "critical", "exception", "log"}


def modules() -> Iterator[ast.Module]:
    for package in CODE:
        for file in (ROOT / package).rglob("*.py"):
            yield ast.parse(file.read_text(encoding="utf-8"))


def logged() -> set[str]:
    """The constant events of all calls of a log."""
    return {
        argument.value
        for module in modules()
        for node in ast.walk(module)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in LEVELS
        and "log" in ast.unparse(node.func.value)
        for argument in node.args
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
    }


def texts() -> set[str]:
    """All string constants: some events are passed to what logs them."""
    return {
        node.value
        for module in modules()
        for node in ast.walk(module)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


def listed() -> set[str]:
    page = PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`[^|]+) \| [a-z, ]+ \|", page, re.MULTILINE)
    return {event for row in rows for event in re.findall(r"`([^`]+)`", row)}


def test_the_page_has_every_event_of_the_code() -> None:
    assert logged() - listed() == set()


def test_every_event_on_the_page_is_in_the_code() -> None:
    assert len(listed()) > 40
    assert listed() - texts() == set()
