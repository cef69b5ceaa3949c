"""No revision reads a table while its lock stops writes: calls must go on during a migration."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.support.databases import ROOT, SERVICES

TABLE: Final = re.compile(r"CREATE TABLE (?:IF NOT EXISTS )?(\w+)")
INDEX: Final = re.compile(
    r"CREATE (?:UNIQUE )?INDEX (CONCURRENTLY )?(?:IF NOT EXISTS )?\w+\s+ON (\w+)"
)
CHECK: Final = re.compile(r"ADD CONSTRAINT (\w+)\s+(?:CHECK|FOREIGN)")


def statements(file: Path) -> Iterator[str]:
    """The SQL that changes tables."""
    for statement in file.read_text(encoding="utf-8").split(";"):
        _, found, rest = statement.rpartition("ALTER TABLE ")
        if found:
            yield rest


def constraints(statement: str) -> dict[str, bool]:
    """The constraints that a statement adds, and whether each is not validated at once."""
    _, *parts = CHECK.split(statement)
    return {name: "NOT VALID" in text for name, text in zip(parts[::2], parts[1::2], strict=True)}


@pytest.mark.parametrize("service", SERVICES)
def test_a_constraint_of_an_existing_table_is_validated_later(service: str) -> None:
    files = sorted((ROOT / f"{service}_service" / "migrations").glob("0*.py"))
    assert files
    added: dict[str, bool] = {}
    for file in files:
        for statement in statements(file):
            added |= constraints(statement)
        validated = set(re.findall(r"VALIDATE CONSTRAINT (\w+)", file.read_text(encoding="utf-8")))
        assert validated <= added.keys()
    assert all(added.values()), added


def test_control_a_constraint_that_is_validated_at_once_is_found() -> None:
    text = "things ADD CONSTRAINT one CHECK (a > 0), ADD CONSTRAINT two\n  CHECK (b > 0) NOT VALID"
    assert constraints(text) == {"one": False, "two": True}


def blocking_indexes(text: str) -> list[str]:
    """The tables that another revision made, and that an index of this one locks against writes."""
    own = set(TABLE.findall(text))
    return [
        table for concurrently, table in INDEX.findall(text) if not (concurrently or table in own)
    ]


@pytest.mark.parametrize("service", SERVICES)
def test_an_index_of_an_existing_table_is_created_concurrently(service: str) -> None:
    for file in (ROOT / f"{service}_service" / "migrations").glob("0*.py"):
        assert blocking_indexes(file.read_text(encoding="utf-8")) == [], file.name


def test_control_an_index_that_blocks_writes_is_found() -> None:
    new = "CREATE TABLE things (a int);\nCREATE INDEX one ON things (a);"
    old = (
        "CREATE UNIQUE INDEX two\n    ON others (a);\nCREATE INDEX CONCURRENTLY three ON more (a);"
    )
    assert blocking_indexes(new + old) == ["others"]
