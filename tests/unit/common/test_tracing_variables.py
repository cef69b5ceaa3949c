"""OpenTelemetry's variables: when they ask for tracing, and how a wrong one is told."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from common import tracing
from common.settings import SettingsError

ENDPOINT, TRACES = "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
WELL = "http://collector:4317"
SECRET = "hunter2"


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, False),
        ({ENDPOINT: ""}, False),
        ({ENDPOINT: " "}, False),
        ({ENDPOINT: WELL}, True),
        ({TRACES: "https://collector.example.com"}, True),
        ({TRACES: "https://[::1]:4317/"}, True),
        ({TRACES: WELL, ENDPOINT: "not looked at"}, True),
        ({ENDPOINT: WELL, "OTEL_SDK_DISABLED": "True"}, False),
        ({ENDPOINT: WELL, "OTEL_SDK_DISABLED": "false"}, True),
        ({ENDPOINT: WELL, "OTEL_TRACES_EXPORTER": "none"}, False),
        ({ENDPOINT: WELL, "OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({ENDPOINT: WELL, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, True),
        ({ENDPOINT: WELL, "OTEL_EXPORTER_OTLP_TIMEOUT": "1.5"}, True),
        ({ENDPOINT: WELL, "OTEL_EXPORTER_OTLP_CERTIFICATE": __file__}, True),
        ({ENDPOINT: WELL, "OTEL_EXPORTER_OTLP_HEADERS": "api-key=a%20b==, Auth = Bearer x,"}, True),
        *(
            (
                {ENDPOINT: WELL, "OTEL_TRACES_SAMPLER": sampler, "OTEL_TRACES_SAMPLER_ARG": ratio},
                True,
            )
            for sampler, ratio in (
                ("traceidratio", "0"),
                ("traceidratio", "1"),
                ("parentbased_traceidratio", "0.25"),
                ("parentbased_traceidratio", ""),
                ("always_on", "not looked at"),
            )
        ),
        *(
            ({ENDPOINT: WELL, "OTEL_RESOURCE_ATTRIBUTES": attributes}, True)
            for attributes in ("", "a.b=c", "a=, b = c=d%2C,who=Zoë")
        ),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json", "OTEL_SERVICE_NAME": "x"}, False),
    ],
)
def test_an_endpoint_asks_for_it(
    given: dict[str, str], wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert tracing.wanted() is wanted


ENDPOINTS = [
    *(SECRET, f"{SECRET}:4317", f"ftp://{SECRET}:1", "http://", "http://:4317", "//h:4317"),
    *(
        f"http://u:{SECRET}@h:4317",
        f"http://{SECRET}:port",
        f"http://{SECRET}:99999",
        "http://[::1",
    ),
    *(
        f"http://h:4317/{SECRET}",
        f"http://h:4317?{SECRET}",
        f"http://{SECRET}",
        f"http://{SECRET}:0",
    ),
]
WRONG = [
    *((name, value) for name in (ENDPOINT, TRACES) for value in ENDPOINTS),
    ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
    ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", SECRET),
    ("OTEL_TRACES_EXPORTER", "console"),
    ("OTEL_TRACES_EXPORTER", f"otlp,{SECRET}"),
    *(
        (name, value)
        for name in ("OTEL_EXPORTER_OTLP_TIMEOUT", "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT")
        for value in (SECRET, "", "0", "-1", "nan", "inf", "86401")
    ),
    *(
        (name, value)
        for name in (
            "OTEL_BSP_SCHEDULE_DELAY",
            "OTEL_BSP_MAX_QUEUE_SIZE",
            "OTEL_BSP_MAX_EXPORT_BATCH_SIZE",
            "OTEL_BSP_EXPORT_TIMEOUT",
        )
        for value in (SECRET, "", "0", "-1", "1.5", "9" * 20)
    ),
    *(
        (name, value)
        for name in ("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS")
        for value in (
            SECRET,
            f"key={SECRET},{SECRET}",
            f"={SECRET}",
            f"k ey={SECRET}",
            f"é={SECRET}",
        )
    ),
    *(
        ("OTEL_RESOURCE_ATTRIBUTES", value)
        for value in (SECRET, f"a=b,{SECRET}", f"={SECRET}", f"a={SECRET},", f"a=\udc80{SECRET}")
    ),
    ("OTEL_BSP_MAX_QUEUE_SIZE", "511"),
    ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "2049"),
    ("OTEL_EXPORTER_OTLP_CERTIFICATE", f"/nowhere/{SECRET}"),
    ("OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY", str(Path(__file__).parent)),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_what_is_wrong_is_named_and_its_value_is_not(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENDPOINT, WELL)
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        tracing.wanted()
    told = str(caught.value)
    assert told.startswith(f"{name}: "), told
    assert len(told) > len(name) + 10
    assert SECRET not in told
    assert "\n" not in told


@pytest.mark.parametrize("ratio", ["25", "2", "-0.5", "nan", SECRET, "25%"])
@pytest.mark.parametrize("sampler", ["traceidratio", "ParentBased_TraceIdRatio"])
def test_a_ratio_that_is_none_is_named_and_not_taken_for_all(
    sampler: str, ratio: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENDPOINT, WELL)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", ratio)
    with pytest.raises(SettingsError, match=r"^OTEL_TRACES_SAMPLER_ARG: must be ") as caught:
        tracing.wanted()
    assert SECRET not in str(caught.value)


def test_off_whoever_asks_gets_back_what_it_came_with() -> None:
    """So that nothing is in the path of a call."""
    things = [object() for _ in range(2)]
    handle, channel = things
    assert tracing.served("/a.B/C", handle) is handle  # type: ignore[type-var]
    assert tracing.calling(channel) is channel  # type: ignore[arg-type]
    made = tracing.own_context()()
    assert len(made) == 0
