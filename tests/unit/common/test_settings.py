"""Where a setting comes from, which source wins, and how a mistake is told."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal

import pytest
from pydantic import Field, SecretStr, ValidationError

from common.addresses import split_host_port
from common.settings import ServiceSettings, SettingsError, load, misspelt, read, reference
from common.urls import engine_url

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

URL = "postgresql://u:hunter2@127.0.0.1:5432/tally_balance"


class BalanceSettings(ServiceSettings):
    service = "balance"

    lane_depth: int = Field(default=256, ge=1, description="Commands that wait, at most.")
    pool_size: int = Field(default=3, ge=1, description="Fewer than usual.")
    log_level: Literal["debug", "info", "warning", "error"] = "warning"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("TALLY_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("TALLY_DATABASE_URL", URL)


def refusal() -> str:
    with pytest.raises(SettingsError) as caught:
        read(BalanceSettings)
    told = str(caught.value)
    assert "hunter2" not in told
    assert "\n" not in told
    return told


def test_the_services_own_variable_wins_over_the_common_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TALLY_POOL_SIZE", "4")
    assert read(BalanceSettings).pool_size == 4
    monkeypatch.setenv("TALLY_BALANCE_POOL_SIZE", "5")
    assert read(BalanceSettings).pool_size == 5
    monkeypatch.setenv("TALLY_COUPON_POOL_SIZE", "6")
    assert read(BalanceSettings).pool_size == 5


def test_an_empty_own_variable_switches_off_what_is_common(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TALLY_REDIS_URL", "redis://127.0.0.1:6379/0")
    monkeypatch.setenv("TALLY_BALANCE_REDIS_URL", "")
    assert read(BalanceSettings).redis_url.get_secret_value() == ""


def test_a_secret_can_stand_in_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TALLY_DATABASE_URL")
    (tmp_path / "tally_balance_database_url").write_text(URL + "\n")
    monkeypatch.setenv("TALLY_SECRETS_DIR", str(tmp_path))
    settings = read(BalanceSettings)
    assert settings.database_url == SecretStr(URL)
    assert "hunter2" not in repr(settings)


def test_a_mistake_in_a_file_names_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TALLY_SECRETS_DIR", str(tmp_path))
    (tmp_path / "TALLY_REDIS_URL").write_text("hunter2")
    assert refusal().startswith(str(tmp_path / "TALLY_REDIS_URL"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TALLY_POOL_SIZE", "hunter2"),
        ("TALLY_BALANCE_POOL_SIZE", "0"),
        ("TALLY_LOG_LEVEL", "hunter2"),
        ("TALLY_BIND", "hunter2"),
        ("TALLY_BIND", "127.0.0.1:99999"),
        ("TALLY_REPLICA", "line\nbreak"),
        ("TALLY_DATABASE_URL", "mysql://u:hunter2@h/d"),
        ("TALLY_BALANCE_REDIS_URL", "hunter2"),
        ("TALLY_GRACE_S", "nan"),
    ],
)
def test_a_mistake_names_the_variable_and_not_the_value(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    assert refusal().startswith(f"{name}: ")


def test_what_is_missing_is_named_for_the_command_that_needs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(SettingsError, match="TALLY_BALANCE_OWNER_DATABASE_URL: needed to migrate"):
        read(BalanceSettings, "migrate")
    monkeypatch.delenv("TALLY_DATABASE_URL")
    assert refusal() == "TALLY_BALANCE_DATABASE_URL: needed to serve, not set"


def test_load_ends_the_process_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TALLY_POOL_SIZE", "many")
    with pytest.raises(SystemExit) as caught:
        load(BalanceSettings)
    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_settings_do_not_change() -> None:
    settings = read(BalanceSettings)
    with pytest.raises(ValidationError):
        settings.pool_size = 7


def test_the_reference_has_every_setting_once_with_its_unit_and_bounds() -> None:
    table = reference(BalanceSettings)
    rows = table.splitlines()[2:]
    names = [row.split("`")[1] for row in rows]
    assert len(names) == len(set(names))
    common = {f"TALLY_{field.upper()}" for field in ServiceSettings.model_fields}
    assert set(names) == common | {
        "TALLY_BALANCE_LANE_DEPTH",
        "TALLY_BALANCE_LOG_LEVEL",
        "TALLY_BALANCE_POOL_SIZE",
    }
    assert "| `TALLY_BALANCE_LANE_DEPTH` | `256` | Commands that wait, at most. (≥ 1) |" in rows
    meaning = ServiceSettings.model_fields["log_level"].description
    assert f"| `TALLY_BALANCE_LOG_LEVEL` | `warning` | {meaning} |" in rows


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        ("[::1]:65535", ("[::1]", 65535)),
        ("h-1.x:1", ("h-1.x", 1)),
    ],
)
def test_addresses_split(address: str, expected: tuple[str, int]) -> None:
    assert split_host_port(address) == expected


@pytest.mark.parametrize("address", ["", "h", "h:", ":1", "h:65536", "h:1:2", "h:-1", "a b:1"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="host:port"):
        split_host_port(address)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://u:p@h/d", "postgresql+asyncpg://u:p@h/d"),
        ("postgresql://u:p%40q@h:5/d", "postgresql+asyncpg://u:p%40q@h:5/d"),
        ("postgresql://u:p@h/d?sslmode=require", "postgresql+asyncpg://u:p@h/d?ssl=require"),
        ("postgresql://u:p@h/d?ssl=verify-full", "postgresql+asyncpg://u:p@h/d?ssl=verify-full"),
    ],
)
def test_a_database_url_becomes_the_drivers(url: str, expected: str) -> None:
    assert engine_url(url).render_as_string(hide_password=False) == expected


def given(monkeypatch: pytest.MonkeyPatch, *names: str) -> list[str]:
    for name in names:
        monkeypatch.setenv(name, "hunter2")
    return misspelt(BalanceSettings)


def test_a_name_that_begins_as_the_services_own_has_to_be_a_setting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = given(monkeypatch, "TALLY_BALANCE_POOLSIZE", "TALLY_BALANCE_WEATHER")
    assert told == [
        "TALLY_BALANCE_POOLSIZE: there is no such setting; did you mean TALLY_BALANCE_POOL_SIZE?",
        "TALLY_BALANCE_WEATHER: there is no such setting",
    ]


def test_a_name_that_is_nearly_a_common_setting_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told = given(monkeypatch, "TALLY_DATABSE_URL", "TALLY_REPLICAS")
    assert [line.split("did you mean ")[1] for line in told] == [
        "TALLY_DATABASE_URL?",
        "TALLY_REPLICA?",
    ]


def test_settings_of_other_services_are_none_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    others = ("TALLY_COUPON_POOL_SIZE", "TALLY_PAYMENT_GATEWAY_URL", "TALLY_ORDER_SAGA_LEASE_S")
    assert given(monkeypatch, *others, "TALLY_SECRETS_DIR_IS_NOT_SET") == []


def test_a_misspelt_file_is_told_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "tally_balance_pasword").write_text("hunter2")
    (tmp_path / "..data").mkdir()
    monkeypatch.setenv("TALLY_SECRETS_DIR", str(tmp_path))
    assert given(monkeypatch) == ["TALLY_BALANCE_PASWORD: there is no such setting"]


def test_a_directory_of_secrets_that_is_shut_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def shut(_: Path) -> Iterator[Path]:
        raise PermissionError(13, "Permission denied", str(tmp_path))

    monkeypatch.setenv("TALLY_SECRETS_DIR", str(tmp_path))
    monkeypatch.setattr("pathlib.Path.iterdir", shut)
    assert refusal() == "TALLY_SECRETS_DIR: cannot be read: Permission denied"
