"""Which databases `make audit`, `make why` and `make rebuild` read, and how they are named."""

from __future__ import annotations

import os
import subprocess

import pytest

from deploy.audit.databases import places_in_words, places_of
from deploy.local.plan import PROJECT


@pytest.mark.parametrize("target", ["audit", "why", "rebuild"])
@pytest.mark.parametrize(("given", "passed"), [("", False), ("DATA_DIR=/elsewhere", True)])
def test_make_passes_a_data_directory_only_if_given(target: str, given: str, passed: bool) -> None:
    """The default one, passed as an option, would hide the databases that the settings name."""
    environment = {name: text for name, text in os.environ.items() if name != "DATA_DIR"}
    done = subprocess.run(
        ["make", "--dry-run", target, *filter(None, [given])],
        cwd=PROJECT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"-m deploy.{target}" in done.stdout
    assert ("--data-dir" in done.stdout) is passed


def test_places_have_no_user_and_no_password() -> None:
    places = places_of(
        {
            "balance": "postgresql://one:secret@db:6432/tally_balance",
            "coupon": "postgresql://two:secret@db:6432/tally_coupon",
            "order": "postgresql://three:secret@[::1]/tally_order?sslmode=require",
        }
    )
    assert places == {
        "balance": "db:6432/tally_balance",
        "coupon": "db:6432/tally_coupon",
        "order": "[::1]:5432/tally_order",
    }
    assert places_in_words(places) == (
        "tally_balance, tally_coupon at db:6432; tally_order at [::1]:5432"
    )
