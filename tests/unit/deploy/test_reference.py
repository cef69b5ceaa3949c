"""The table of settings in docs/settings.md."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from common.settings import ServiceSettings
from deploy.audit.settings import AuditSettings
from deploy.reference import reference


class BalanceSettings(ServiceSettings):
    service = "balance"

    lane_depth: int = Field(default=256, ge=1, description="Commands that wait, at most.")
    pool_size: int = Field(default=3, ge=1, description="Fewer than usual.")
    log_level: Literal["debug", "info", "warning", "error"] = "warning"


def test_every_setting_is_there_once_with_its_default_and_bounds() -> None:
    rows = reference(BalanceSettings).splitlines()[2:]
    names = [row.split("`")[1] for row in rows]
    assert len(names) == len(set(names))
    common = {f"TALLY_{field.upper()}" for field in ServiceSettings.model_fields}
    own = {f"TALLY_BALANCE_{field}" for field in ("LANE_DEPTH", "LOG_LEVEL", "POOL_SIZE")}
    assert set(names) == common | own
    assert "| `TALLY_BALANCE_LANE_DEPTH` | `256` | Commands that wait, at most. (≥ 1) |" in rows
    meaning = ServiceSettings.model_fields["log_level"].description
    assert f"| `TALLY_BALANCE_LOG_LEVEL` | `warning` | {meaning} |" in rows


def test_a_setting_of_the_audit_is_there_though_services_have_one_of_that_name() -> None:
    rows = reference(AuditSettings).splitlines()[2:]
    assert sum("`TALLY_AUDIT_TLS_DIR`" in row for row in rows) == 1
    assert sum("`TALLY_AUDIT_LOG_LEVEL`" in row for row in rows) == 0
