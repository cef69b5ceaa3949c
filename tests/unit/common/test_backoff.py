"""Pauses between attempts: they double up to a maximum, with jitter."""

from __future__ import annotations

import pytest

from common.backoff import Backoff


@pytest.mark.parametrize(
    ("attempt", "pause_s"), [(1, 0.5), (2, 1.0), (3, 2.0), (5, 8.0), (6, 10.0), (10_000, 10.0)]
)
def test_pauses_double_up_to_a_maximum(attempt: int, pause_s: float) -> None:
    """However many attempts there were: 2 to the power of 10,000 is no float."""
    assert Backoff(0.5, 10.0, jitter=(1.0, 1.0)).pause_s(attempt) == pause_s


def test_pauses_differ_within_the_jitter() -> None:
    pauses = {Backoff(0.5, 10.0).pause_s(2) for _ in range(100)}
    assert len(pauses) > 1
    assert all(0.5 <= pause <= 1.0 for pause in pauses)
