"""An environment without settings of Tally or OpenTelemetry."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("TALLY_", "OTEL_")):
            monkeypatch.delenv(name)
