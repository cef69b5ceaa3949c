"""Rules about several settings of the payment service."""

from __future__ import annotations

import pytest

from common.environment import SettingsError
from common.settings import read
from payment_service.settings import PaymentSettings


@pytest.mark.parametrize(("window_s", "timeout_s"), [("5.9", "5"), ("120.5", "120"), ("1", "30")])
def test_a_window_that_a_call_may_outlast_is_refused(
    monkeypatch: pytest.MonkeyPatch, window_s: str, timeout_s: str
) -> None:
    monkeypatch.setenv("TALLY_PAYMENT_CONFIRM_WINDOW_S", window_s)
    monkeypatch.setenv("TALLY_PAYMENT_GATEWAY_TIMEOUT_S", timeout_s)
    named = "TALLY_PAYMENT_CONFIRM_WINDOW_S: .* more than TALLY_PAYMENT_GATEWAY_TIMEOUT_S"
    with pytest.raises(SettingsError, match=named):
        read(PaymentSettings, "migrate")
