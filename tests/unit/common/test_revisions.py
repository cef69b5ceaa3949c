"""The services' revisions: each has its service's name and a number."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory

import common.db.migrations
from common.db.revisions import ForeignSchema, require_own

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("service", ["balance", "coupon", "order", "payment"])
def test_a_services_revisions_have_its_name_and_a_number(service: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(common.db.migrations.__file__).parent))
    config.set_main_option("path_separator", "newline")
    config.set_main_option("version_locations", str(ROOT / f"{service}_service" / "migrations"))
    found = [one.revision for one in ScriptDirectory.from_config(config).walk_revisions()]
    # The newest first. Alembic's column has 32 characters.
    assert found == [f"{service}_{number:04}" for number in range(len(found), 0, -1)]
    assert all(len(one) <= 32 for one in found)
    assert importlib.import_module(f"{service}_service.tables").SCHEMA in found


@pytest.mark.parametrize("found", ["", "balance_0001", "balance_9999"])
def test_an_own_schema_of_any_age_and_an_empty_database_are_accepted(found: str) -> None:
    """ForeignSchema is raised for others: the next test is the control."""
    require_own(found, "balance_0002", "db")


@pytest.mark.parametrize("found", ["coupon_0002", "1975ea83b712", "balance", "balance_of_0002"])
def test_another_services_schema_is_foreign(found: str) -> None:
    with pytest.raises(ForeignSchema, match=f"db is not balance's, its schema is {found}"):
        require_own(found, "balance_0002", "db")
