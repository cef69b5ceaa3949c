"""The page of limits has the values of the code."""

from __future__ import annotations

import dataclasses
import importlib
import re
from typing import Any, Final

import pytest

from common.db.database import open_pools
from deploy import reference
from deploy.local.plan import PROJECT

PAGE: Final = (PROJECT / "docs" / "guides" / "limits.md").read_text(encoding="utf-8")


def rows_of(name: str) -> list[list[str]]:
    """The cells of the tables in the sections of this name, without their heads."""
    sections = re.findall(rf"<!-- {name} -->\n(.*?)<!-- end -->", PAGE, re.DOTALL)
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for section in sections
        for line in section.splitlines()[2:]
    ]


def value_of(where: str) -> Any:
    """The default of a setting, or the constant or dataclass field with this dotted name."""
    if where.startswith("TALLY_"):
        for settings in reference.SETTINGS:
            name = where.removeprefix("TALLY_").lower()
            field = settings.model_fields.get(name.removeprefix(f"{settings.service}_"))
            if field is not None:
                return field.default
        raise AssertionError(f"no setting {where}")
    path, name = where.rsplit(".", 1)
    try:
        return getattr(importlib.import_module(path), name)
    except ModuleNotFoundError:
        module, type_ = path.rsplit(".", 1)
        of_type = getattr(importlib.import_module(module), type_)
        return {field.name: field.default for field in dataclasses.fields(of_type)}[name]


LIMITS: Final = [(row[2].strip("`"), row[1]) for row in rows_of("limits")]


@pytest.mark.parametrize(("where", "value"), LIMITS)
def test_a_limit_on_the_page_is_that_of_the_code(where: str, value: str) -> None:
    assert float(value_of(where)) == float(value)


def test_the_page_has_every_table() -> None:
    assert len(LIMITS) > 35
    assert len(rows_of("pools")) == 5


@pytest.mark.parametrize("row", rows_of("pools"), ids=lambda row: row[0])
async def test_pools_and_bulkheads_on_the_page_are_those_of_the_code(row: list[str]) -> None:
    size, *shown = map(int, row)
    opened = open_pools("postgresql://u:p@127.0.0.1/db", application_name="t", pool_size=size)
    bulkheads = opened.bulkheads
    pools = [pool.size for pool in (opened.probe, opened.lanes, opened.waiting, opened.reads)]
    sizes = [
        bulkhead.size
        for bulkhead in (bulkheads.calls, bulkheads.jobs, bulkheads.contended, bulkheads.stuck)
    ]
    assert shown == pools + sizes
    assert sum(pools) == size
    await opened.close()
