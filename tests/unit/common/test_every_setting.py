"""Every setting of every service, malformed in every way that its type allows."""

from __future__ import annotations

from typing import Literal, get_args, get_origin

import pytest
from annotated_types import Ge, Gt, Le, Lt
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from common.environment import SettingsError
from common.settings import ServiceSettings, read
from deploy.reference import SETTINGS

SECRET = "hunter2"
FREE_TEXT = {"auth_issuer", "service_token_file"}
"""Settings with any text."""

HOST_PORTS = [
    *(SECRET, f"{SECRET}:", ":1", f"{SECRET}:65536", f"{SECRET}:x", f"{SECRET} :1"),
    *(f"{SECRET}:1:2", f"{SECRET}:-1"),
]
PEERS = [
    *(*HOST_PORTS, "", ",", f"a:1,{SECRET}:2", f"127.0.0.1:1,{SECRET}:2", "127.0.0.1:1,[::1]:1"),
    *(f"http://{SECRET}:1", f"dns://{SECRET}:1", f"dns:///{SECRET}", f"{SECRET}://a:1", "unix:"),
    *(f"https:{SECRET}:1", f"dns:///{SECRET}:x", "dns:///", "dns:", "unix://", "ipv4:"),
    *(f"ipv4:{SECRET}:1", "ipv4:[::1]:1", "ipv6:127.0.0.1:1", f"xds:///{SECRET}:1"),
]
DATABASES = [
    *(SECRET, f"mysql://u:{SECRET}@h/d", f"postgresql://u:{SECRET}@h", "postgresql:///d"),
    *(f"postgresql://u:{SECRET}@h:port/d", f"postgresql://u:{SECRET}@h:99999/d"),
    *(f"postgresql://u:{SECRET}@h:0/d", f"postgresql://u:{SECRET}@h/d?unknown=1"),
    *(f"postgresql://u:{SECRET}@h/d?sslmode={SECRET}", f"postgresql://u: {SECRET}@h/d"),
    f"postgresql://u:{SECRET}@h/d?sslmode=require&ssl=require",
    *(f"postgresql://u:p@h/d?sslrootcert=/{SECRET}", f"postgresql://u:{SECRET}@h/d?sslkey=/k"),
    *(
        f"postgresql://u:p@h/d?sslmode={mode}&sslrootcert=/{SECRET}"
        for mode in ("prefer", "disable")
    ),
    f"postgresql://u:p@h/d?sslmode=verify-full&sslrootcert={SECRET}",
]
DIRECTORIES = [SECRET, f"./{SECRET}", f" /{SECRET}", f"/{SECRET}\n"]
RATES = [
    *(SECRET, "20", "20:", ":200", "0:200", "20:0", "-1:200", "20:-1", "10001:1", "1e3:1"),
    *("nan:1", "20:1.5", "20:200:1", " 20:200", "20:200\n", "0.0001:1"),
]
WORDS = ["", f"{SECRET} {SECRET}", "x" * 201, "é"]
TEXTS = {
    "bind": [*HOST_PORTS, ""],
    "peer_bind": HOST_PORTS,
    "probe_bind": HOST_PORTS,
    "tls_dir": DIRECTORIES,
    "peer_tls_dir": DIRECTORIES,
    "peer_services": [
        *(SECRET, "[]", "7", f'{{"{SECRET}": "order"}}', f'{{"https://{SECRET}/a": "order"}}'),
        *(f'{{"spiffe://{SECRET}": "order"}}', f'{{"spiffe://{SECRET}/": "order"}}'),
        *(f'{{"spiffe://a/{SECRET}": ""}}', f'{{"spiffe://a/{SECRET}": ["order"]}}'),
    ],
    "pause_file": DIRECTORIES,
    "replica": [f"{SECRET} {SECRET}", f"{SECRET}\n", "x" * 65, "", "é"],
    "redis_url": [
        *(SECRET, f"http://{SECRET}", f"redis://:{SECRET}@h:port/0", f"redis://:{SECRET}@h:99999"),
        *("redis:// h", "redis://", "unix://", f"redis://:{SECRET}@h:0"),
        *(f"redis+sentinel://:{SECRET}@h:1", f"redis+sentinel://:{SECRET}@h/s", "redis+cluster://"),
        *(f"redis+cluster://:{SECRET}@h:1,i:0", f"redis+cluster://h:1/{SECRET}", "x+cluster://h:1"),
        *(f"redis+cluster://h:1?ssl_ca_certs=/{SECRET}", f"rediss+cluster://h:1?x=/{SECRET}"),
        f"rediss+cluster://h:1?ssl_ca_certs={SECRET}",
    ],
    "gateway_secret_key": [f"{SECRET}:", f"{SECRET} {SECRET}", f"{SECRET}\n", f"{SECRET}é"],
    "gateway_url": [SECRET, f"ftp://{SECRET}", f"http://u:{SECRET}@h", "http://", "http://[::1"],
    "auth_jwks": [
        *(f"http://{SECRET}/keys", f"ftp://{SECRET}", f"https://u:{SECRET}@h/keys", "https://"),
        *("https://[::1", f"file:///{SECRET}", "https://h:0/"),
    ],
    "auth_services": [SECRET, "[]", "7", f'{{"till": "{SECRET}"}}', f'{{"till": ["{SECRET}"]}}'],
    "rate_limit_reads": RATES,
    "rate_limit_writes": RATES,
    "rate_limit_public": RATES,
    "rate_limit_issue": RATES,
    "rate_limit_pay": RATES,
    "trusted_proxies": [SECRET, "10.0.0.0/33", "10.0.0.1/8", "10.0.0.0/8;10.1.0.0/16", "::1/129"],
    "auth_audience": WORDS,
    "auth_role_claim": WORDS,
    "auth_saga_service": WORDS,
    "balance_address": PEERS,
    "coupon_address": PEERS,
    "payment_address": PEERS,
    "database_url": DATABASES,
    "owner_database_url": DATABASES,
    "audit_database_url": DATABASES,
}


def bad_values(name: str, field: FieldInfo) -> list[str]:
    """Values that the field must reject."""
    if name in TEXTS:
        return TEXTS[name]
    if get_origin(field.annotation) is Literal:
        return [SECRET, "", get_args(field.annotation)[0].upper() + "S"]
    if field.annotation in {bool, bool | None}:
        return [SECRET, "", "2"]
    assert field.annotation in {int, float}, name
    beyond = ["", SECRET, "nan", "1e400", "-inf", "0x10", "1,5"]
    for bound in field.metadata:
        if isinstance(bound, Ge):
            beyond += [str(bound.ge - 1)]  # type: ignore[operator]
        elif isinstance(bound, Gt):
            beyond += [str(bound.gt), "-1"]
        elif isinstance(bound, Le):
            beyond += [str(bound.le + 1)]  # type: ignore[operator]
        else:
            assert not isinstance(bound, Lt)
    if field.annotation is int:
        beyond += ["1.5"]
    return beyond


CASES = [
    pytest.param(settings, name, field, id=f"{settings.service}-{name}")
    for settings in SETTINGS
    for name, field in settings.model_fields.items()
    if name not in FREE_TEXT
]


@pytest.fixture(autouse=True)
def valid_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATABASE_URL", "OWNER_DATABASE_URL"):
        monkeypatch.setenv(f"TALLY_{name}", f"postgresql://u:{SECRET}@h:1/d?sslmode=require")
    monkeypatch.setenv("TALLY_GATEWAY_URL", "http://h")
    monkeypatch.setenv("TALLY_GATEWAY_SECRET_KEY", SECRET)


@pytest.mark.parametrize("settings", SETTINGS)
def test_valid_settings_are_read_and_secrets_not_shown(settings: type[ServiceSettings]) -> None:
    read(settings)
    read(settings, "migrate")
    for name, field in settings.model_fields.items():
        if name.endswith(("database_url", "redis_url", "secret_key")):
            assert field.annotation is SecretStr, name


@pytest.mark.parametrize(("settings", "name", "field"), CASES)
def test_a_malformed_setting_is_named_without_its_value(
    settings: type[ServiceSettings], name: str, field: FieldInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    for prefix in (f"TALLY_{settings.service.upper()}_", "TALLY_"):
        variable = prefix + name.upper()
        for value in bad_values(name, field):
            with monkeypatch.context() as patch:
                patch.setenv(variable, value)
                with pytest.raises(SettingsError) as caught:
                    read(settings)
            problem = str(caught.value)
            assert problem.startswith(f"{variable}: "), (value, problem)
            assert len(problem) > len(variable) + 10
            assert SECRET not in problem
            assert "\n" not in problem


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_missing_setting_is_named(
    settings: type[ServiceSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    for field in settings.needed_to_serve:
        variable = f"TALLY_{settings.service.upper()}_{field.upper()}"
        with monkeypatch.context() as patch:
            patch.setenv(variable, "")
            with pytest.raises(SettingsError, match=f"^{variable}: needed to serve, not set$"):
                read(settings)
