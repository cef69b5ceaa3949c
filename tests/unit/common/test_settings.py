"""Where a setting comes from, which source wins, and how a malformed one is reported."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydantic import Field, SecretStr, ValidationError

from common.environment import SettingsError, unknown_names
from common.settings import ServiceSettings, read
from common.urls import SSL_MODES, RedisNodes, engine_url, redis_nodes
from order_service.settings import OrderSettings
from tally_client.rpc.addresses import target
from tests.support.certificates import Authority, write_trusted

PRODUCTION = {
    "PRODUCTION": "true",
    "AUTH": "required",
    "AUTH_ISSUER": "x",
    "AUTH_JWKS": "/keys",
    "ORDER_SERVICE_TOKEN_FILE": "/token",
}
URL = "postgresql://u:hunter2@127.0.0.1:5432/tally_balance"


class BalanceSettings(ServiceSettings):
    service = "balance"

    pool_size: int = Field(default=3, ge=1)


@pytest.fixture(autouse=True)
def database_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TALLY_DATABASE_URL", URL)


def problem() -> str:
    with pytest.raises(SettingsError) as caught:
        read(BalanceSettings)
    text = str(caught.value)
    assert "hunter2" not in text
    assert "\n" not in text
    return text


def test_the_services_own_variable_wins_over_the_common_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, expected in (("POOL_SIZE", 4), ("BALANCE_POOL_SIZE", 5), ("COUPON_POOL_SIZE", 5)):
        monkeypatch.setenv(f"TALLY_{name}", "6" if name.startswith("COUPON") else str(expected))
        assert read(BalanceSettings).pool_size == expected


def test_an_empty_own_variable_replaces_the_common_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TALLY_REDIS_URL", "redis://127.0.0.1:6379/0")
    monkeypatch.setenv("TALLY_BALANCE_REDIS_URL", "")
    assert read(BalanceSettings).redis_url.get_secret_value() == ""


def test_settings_are_read_from_files_and_frozen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("TALLY_DATABASE_URL")
    (tmp_path / "tally_balance_database_url").write_text(URL + "\n")
    monkeypatch.setenv("TALLY_SECRETS_DIR", str(tmp_path))
    settings = read(BalanceSettings)
    assert settings.database_url == SecretStr(URL)
    assert "hunter2" not in repr(settings)
    with pytest.raises(ValidationError):
        settings.pool_size = 7


FILE = "TALLY_BALANCE_DATABASE_URL"


@pytest.mark.parametrize(
    ("expected", "spoil"),
    [
        ("TALLY_SECRETS_DIR: is not a directory", lambda d: (d.rmdir(), d.write_text("hunter2"))),
        (f"{FILE}: must be postgresql://", lambda d: (d / FILE).write_text("hunter2")),
        (f"{FILE}: is not text in UTF-8", lambda d: (d / FILE).write_bytes(b"hunter2\xff")),
        (f"{FILE}: is not a file", lambda d: (d / FILE).mkdir()),
        (f"{FILE}: is not a file", lambda d: (d / FILE).symlink_to(d / "gone")),
    ],
)
def test_an_unreadable_secret_is_reported(
    expected: str,
    spoil: Callable[[Path], object],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    directory = tmp_path / "secrets"
    directory.mkdir()
    monkeypatch.delenv("TALLY_DATABASE_URL")
    monkeypatch.setenv("TALLY_SECRETS_DIR", str(directory))
    spoil(directory)
    assert problem().removeprefix(f"{directory}/").startswith(expected)


def test_an_unreadable_secrets_directory_is_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def unreadable(_: Path) -> Iterator[Path]:
        raise PermissionError(13, "Permission denied", str(tmp_path))

    monkeypatch.setenv("TALLY_SECRETS_DIR", str(tmp_path))
    monkeypatch.setattr("pathlib.Path.iterdir", unreadable)
    assert problem() == "TALLY_SECRETS_DIR: cannot be read: Permission denied"


def test_unknown_names_are_those_with_the_services_own_prefix(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "tally_balance_pasword").write_text("hunter2")
    (tmp_path / "..data").mkdir()
    monkeypatch.setenv("TALLY_SECRETS_DIR", str(tmp_path))
    for name in ("BALANCE_POOLSIZE", "BALANCE_POOL_SIZE", "COUPON_WEATHER", "WEATHER"):
        monkeypatch.setenv(f"TALLY_{name}", "1")
    found = unknown_names("balance", BalanceSettings.model_fields)
    assert found == ["TALLY_BALANCE_PASWORD", "TALLY_BALANCE_POOLSIZE"]


@pytest.mark.parametrize(
    ("addresses", "expected"),
    [
        ("127.0.0.1:1", "ipv4:127.0.0.1:1"),
        ("127.0.0.1:1, 127.0.0.2:2", "ipv4:127.0.0.1:1,127.0.0.2:2"),
        ("localhost:1,127.0.0.1:2", "ipv4:127.0.0.1:1,127.0.0.1:2"),
        ("[::1]:1,[::1]:2", "ipv6:[::1]:1,[::1]:2"),
        ("balance-1.x:65535", "dns:///balance-1.x:65535"),
        *(
            (uri, uri)
            for uri in (
                *("dns:///balance:50051", "dns:balance:50051", "dns://10.0.0.10:53/balance:50051"),
                *("ipv4:127.0.0.1:1,127.0.0.2:2", "ipv6:[::1]:1", "unix:/run/balance.sock"),
            )
        ),
    ],
)
def test_addresses_become_a_target(addresses: str, expected: str) -> None:
    """Malformed ones: ``test_every_setting``."""
    assert target(addresses) == expected


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://u:p@h/d", "postgresql+asyncpg://u:p@h/d"),
        ("postgresql://u:p%40q@h:5/d", "postgresql+asyncpg://u:p%40q@h:5/d"),
        ("postgresql://u:p@h/d?sslmode=require", "postgresql+asyncpg://u:p@h/d?ssl=require"),
        ("postgresql://u:p@h/d?ssl=verify-full", "postgresql+asyncpg://u:p@h/d?ssl=verify-full"),
        (
            "postgresql://u:p@h/d?sslmode=verify-ca&sslrootcert=/etc/ca.crt",
            "postgresql+asyncpg://u:p@h/d?ssl=verify-ca&sslrootcert=%2Fetc%2Fca.crt",
        ),
    ],
)
def test_a_database_url_becomes_the_drivers(url: str, expected: str) -> None:
    assert engine_url(url).render_as_string(hide_password=False) == expected


def test_urls_of_several_redis_servers_may_name_their_authorities() -> None:
    url = "rediss+sentinel://:p@h:1,i:2/primary/3?ssl_ca_certs=/etc/ca.crt"
    nodes = redis_nodes(url)
    assert nodes == RedisNodes((("h", 1), ("i", 2)), "primary", 3, None, "p", True, "/etc/ca.crt")
    cluster = redis_nodes("rediss+cluster://h:1/?ssl_ca_certs=/etc/ca.crt")
    assert cluster is not None
    assert (cluster.tls, cluster.authorities) == (True, "/etc/ca.crt")


# -- TLS -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "given", "expected"),
    [
        (BalanceSettings, {"PEER_BIND": "127.0.0.1:1"}, "PEER_TLS_DIR: is needed with"),
        (BalanceSettings, PRODUCTION, "TLS_DIR: is needed in production"),
        (
            OrderSettings,
            {**PRODUCTION, "TLS_DIR": "/tls", "DATABASE_URL": f"{URL}?sslmode=verify-full"},
            "PEER_TLS_DIR: is needed in production",
        ),
        (
            OrderSettings,
            {"PEER_TLS_DIR": "/tls", "ORDER_COUPON_ADDRESS": "127.0.0.1:1,127.0.0.1:2"},
            "COUPON_ADDRESS: must be one name with TALLY_PEER_TLS_DIR",
        ),
    ],
)
def test_tls_is_off_or_complete(
    settings: type[ServiceSettings],
    given: dict[str, str],
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(f"TALLY_{name}", value)
    with pytest.raises(SettingsError, match=f"^TALLY_{settings.service.upper()}_{expected}"):
        read(settings)


def test_the_order_service_needs_files_that_it_can_use(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert read(OrderSettings).peer_certificates() is None
    monkeypatch.setenv("TALLY_PEER_TLS_DIR", str(tmp_path))
    with pytest.raises(SettingsError, match=r"^TALLY_PEER_TLS_DIR: .*ca.crt: cannot be read"):
        read(OrderSettings).peer_certificates()
    write_trusted(tmp_path, Authority())
    found = read(OrderSettings).peer_certificates()
    assert found is not None
    assert found.certificate_file is None, "calls have a token instead"


# -- TLS to PostgreSQL and Redis -----------------------------------------------------------------

WHOLE = {**PRODUCTION, "TLS_DIR": "/tls", "DATABASE_URL": f"{URL}?sslmode=verify-full"}
"""What a replica of production needs, without Redis."""
END = "must end in ?sslmode=verify-full in production; set TALLY_BALANCE_ALLOW_UNVERIFIED_DATABASE"
BEGIN = "must be rediss://, rediss+sentinel:// or rediss+cluster:// in production"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ""),
        ({"DATABASE_URL": f"{URL}?sslmode=verify-full&sslrootcert=/ca.crt"}, ""),
        *(
            ({"DATABASE_URL": f"{URL}{query}"}, f"TALLY_DATABASE_URL: {END}")
            for query in ("", *(f"?sslmode={mode}" for mode in SSL_MODES if mode != "verify-full"))
        ),
        (
            {"DATABASE_URL": f"{URL}?sslmode=verify-ca&sslrootcert=/ca.crt"},
            f"TALLY_DATABASE_URL: {END}",
        ),
        ({"BALANCE_AUDIT_DATABASE_URL": URL}, f"TALLY_BALANCE_AUDIT_DATABASE_URL: {END}"),
        ({"DATABASE_URL": URL, "ALLOW_UNVERIFIED_DATABASE": "true"}, ""),
        ({"DATABASE_URL": URL, "ALLOW_UNVERIFIED_REDIS": "true"}, f"TALLY_DATABASE_URL: {END}"),
        *(
            ({"REDIS_URL": url}, "")
            for url in (
                *("", "rediss://:hunter2@h:1/0", "rediss://h?ssl_cert_reqs=required"),
                *("rediss+sentinel://h:1/s", "rediss+cluster://h:1?ssl_ca_certs=/ca.crt"),
                "rediss://h?ssl_ca_certs=/ca.crt&ssl_check_hostname=true",
            )
        ),
        *(
            ({"REDIS_URL": url}, f"TALLY_REDIS_URL: {BEGIN}")
            for url in (
                *("redis://:hunter2@h:1/0", "unix:///run/redis.sock", "redis+cluster://h:1"),
                *("redis+sentinel://h:1/s", "rediss://h?ssl_cert_reqs=none"),
                *("rediss://h?ssl_cert_reqs=optional", "rediss://h?ssl_check_hostname=false"),
                "rediss://h?ssl%5Fcert_reqs=required&ssl_cert_reqs=none",
            )
        ),
        ({"REDIS_URL": "redis://h:1/0", "BALANCE_ALLOW_UNVERIFIED_REDIS": "true"}, ""),
        (
            {"REDIS_URL": "redis://h:1/0", "ALLOW_UNVERIFIED_DATABASE": "true"},
            f"TALLY_REDIS_URL: {BEGIN}",
        ),
    ],
)
def test_production_verifies_postgresql_and_redis(
    given: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**WHOLE, **given}.items():
        monkeypatch.setenv(f"TALLY_{name}", value)
    if expected:
        assert problem().startswith(expected)
    else:
        read(BalanceSettings)
    # Elsewhere any of them will do.
    monkeypatch.setenv("TALLY_PRODUCTION", "false")
    read(BalanceSettings)


def test_a_migration_in_production_verifies_its_database_and_needs_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TALLY_PRODUCTION", "true")
    monkeypatch.setenv("TALLY_REDIS_URL", "redis://redis:6379")
    monkeypatch.delenv("TALLY_DATABASE_URL")
    for settings in (BalanceSettings, OrderSettings):
        monkeypatch.setenv("TALLY_OWNER_DATABASE_URL", URL)
        with pytest.raises(SettingsError, match=r"^TALLY_OWNER_DATABASE_URL: must end in"):
            read(settings, "migrate")
        monkeypatch.setenv("TALLY_OWNER_DATABASE_URL", f"{URL}?sslmode=verify-full")
        read(settings, "migrate")


# -- identity --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"PRODUCTION": "true"}, "TALLY_BALANCE_AUTH: must be required in production"),
        ({"AUTH": "required", "AUTH_JWKS": "/keys"}, "TALLY_BALANCE_AUTH_ISSUER: is needed with"),
        ({"AUTH": "required", "AUTH_ISSUER": "x"}, "TALLY_BALANCE_AUTH_JWKS: is needed with"),
    ],
)
def test_identity_is_off_or_complete(
    given: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(f"TALLY_{name}", value)
    assert problem().startswith(expected)


def test_the_order_service_needs_its_own_token_where_identity_is_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in {"AUTH": "required", "AUTH_ISSUER": "x", "AUTH_JWKS": "/keys"}.items():
        monkeypatch.setenv(f"TALLY_{name}", value)
    with pytest.raises(SettingsError, match="TALLY_ORDER_SERVICE_TOKEN_FILE: is needed"):
        read(OrderSettings)
    file = tmp_path / "token"
    monkeypatch.setenv("TALLY_ORDER_SERVICE_TOKEN_FILE", str(file))
    for text, says in ((None, "No such file"), ("", "has no token"), ("a b", "has no token")):
        if text is not None:
            file.write_text(text)
        with pytest.raises(SettingsError, match=f"TALLY_ORDER_SERVICE_TOKEN_FILE: {says}"):
            read(OrderSettings).service_token()
    file.write_text("token\n")
    token = read(OrderSettings).service_token()
    assert token is not None
    assert token.metadata == (("authorization", "Bearer token"),)
