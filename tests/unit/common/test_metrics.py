"""The page of metrics."""

from __future__ import annotations

from prometheus_client import Counter, Histogram, generate_latest

from common.metrics import from_zero, new_registry


def test_a_page_has_no_times_at_which_series_were_created() -> None:
    registry = new_registry()
    from_zero(Counter("tally_events", "Events.", ("kind",), registry=registry), ["first"])
    from_zero(Histogram("tally_times", "Times.", ("kind",), registry=registry), ["first"])
    page = generate_latest(registry).decode()
    assert 'tally_events_total{kind="first"} 0.0' in page
    assert "_created" not in page
