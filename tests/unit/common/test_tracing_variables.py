"""OpenTelemetry's variables: which turn tracing on, and how a malformed one is reported."""

from __future__ import annotations

import pytest

from common import tracing
from common.environment import SettingsError
from common.rpc.status import from_trailing

ENDPOINT, TRACES = "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
URL = "http://collector:4317"
SECRET = "hunter2"


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, False),
        ({ENDPOINT: ""}, False),
        ({ENDPOINT: " "}, False),
        ({"OTEL_EXPORTER_OTLP_TIMEOUT": SECRET}, False),
        ({ENDPOINT: URL}, True),
        ({TRACES: "https://collector.example.com"}, True),
        ({TRACES: "https://[::1]:4317/"}, True),
        ({TRACES: URL, ENDPOINT: "not read"}, True),
        ({ENDPOINT: URL, "OTEL_SDK_DISABLED": "True"}, False),
        ({ENDPOINT: URL, "OTEL_SDK_DISABLED": "false"}, True),
        ({ENDPOINT: URL, "OTEL_TRACES_EXPORTER": "none"}, False),
        ({ENDPOINT: URL, "OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({ENDPOINT: URL, "OTEL_EXPORTER_OTLP_TIMEOUT": "1.5"}, True),
    ],
)
def test_an_endpoint_turns_tracing_on(
    given: dict[str, str], wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert tracing.wanted() is wanted


MALFORMED = [
    *(
        (name, url)
        for name in (ENDPOINT, TRACES)
        for url in (
            *(SECRET, f"{SECRET}:4317", f"ftp://{SECRET}:1", "http://", "http://:4317", "//h:4317"),
            *(f"http://u:{SECRET}@h:4317", f"http://{SECRET}:port", "http://[::1"),
            *(f"http://h:4317/{SECRET}", f"http://h:4317?{SECRET}", f"http://{SECRET}"),
        )
    ),
]


@pytest.mark.parametrize(("name", "value"), MALFORMED)
def test_a_malformed_variable_is_named_without_its_value(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENDPOINT, URL)
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        tracing.wanted()
    problem = str(caught.value)
    assert problem.startswith(f"{name}: must be "), problem
    assert SECRET not in problem
    assert "\n" not in problem


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "9999"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", SECRET),
        ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", SECRET),
    ],
)
def test_a_variable_that_the_sdk_rejects_is_one_line_without_its_value(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENDPOINT, URL)
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=r"^OTEL_\S+: OpenTelemetry rejects it") as caught:
        tracing.start(service="echo", replica="one", read_refusal=from_trailing)
    assert SECRET not in str(caught.value)


def test_without_tracing_handlers_and_channels_are_returned_unchanged() -> None:
    """So that no call runs through it."""

    def handle() -> None: ...

    channel = object()
    assert tracing.served("/a.B/C", handle) is handle
    assert tracing.calling(channel) is channel  # type: ignore[arg-type]
    assert len(tracing.own_context()()) == 0
