"""The published service config: each method's time limit and retries, and its run-time readers."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions

from protos import generate, service_config
from tally_client.policy import RESET_ATTEMPTS_MAX
from tally_client.rpc import service_config as at_run_time
from tests.support.contract import (
    METHODS,
    SERVICES,
    WITHOUT_REQUEST_ID,
    every_method,
    is_read,
)

PUBLISHED: dict[str, Any] = json.loads(service_config.PUBLISHED.read_text(encoding="utf-8"))
LEVELS = MethodOptions.IdempotencyLevel


def policies(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Each method's policy, by its full name; fails if a method has two."""
    found: dict[str, dict[str, Any]] = {}
    for entry in config["methodConfig"]:
        for name in entry["name"]:
            full_name = f"{name['service']}.{name['method']}"
            assert full_name not in found
            found[full_name] = {key: value for key, value in entry.items() if key != "name"}
    return found


@every_method
def test_idempotency_level_matches_the_request(method: MethodDescriptor) -> None:
    if is_read(method):
        expected = LEVELS.NO_SIDE_EFFECTS
    elif method.name in WITHOUT_REQUEST_ID:
        expected = LEVELS.IDEMPOTENCY_UNKNOWN
    else:
        expected = LEVELS.IDEMPOTENT
    assert method.GetOptions().idempotency_level == expected


@every_method
def test_only_idempotent_methods_are_retried_after_unavailable(method: MethodDescriptor) -> None:
    policy = policies(PUBLISHED)[method.full_name]
    assert at_run_time.is_idempotent(method) is (method.name not in WITHOUT_REQUEST_ID)
    assert ("retryPolicy" in policy) is at_run_time.is_idempotent(method)
    if "retryPolicy" in policy:
        assert policy["retryPolicy"]["retryableStatusCodes"] == ["UNAVAILABLE"]
        assert policy["retryPolicy"]["maxAttempts"] == RESET_ATTEMPTS_MAX == 5


@every_method
def test_unary_methods_have_a_time_limit_and_streams_none(method: MethodDescriptor) -> None:
    limit = "5s" if is_read(method) else "10s"
    if method.name in {"PayOrder", "CancelOrder", "ConfirmPayment", "CancelPayment"}:
        limit = "30s"
    expected = None if method.server_streaming else limit
    assert policies(PUBLISHED)[method.full_name].get("timeout") == expected
    path = f"/{method.containing_service.full_name}/{method.name}"
    timeout_s = at_run_time.timeouts_s(PUBLISHED).get(path)
    assert timeout_s == (float(expected.removesuffix("s")) if expected else None)


def test_config_has_every_method_and_is_current() -> None:
    assert policies(PUBLISHED).keys() == {method.full_name for method in METHODS}
    assert service_config.text(SERVICES) == service_config.PUBLISHED.read_text(encoding="utf-8")


def test_config_balances_over_healthy_replicas_and_throttles_retries() -> None:
    assert PUBLISHED.items() >= at_run_time.balanced().items()
    assert PUBLISHED["loadBalancingConfig"] == [{"round_robin": {}}]
    assert PUBLISHED["healthCheckConfig"] == {"serviceName": ""}
    # gRPC's limits: 1 to 1000 tokens, a ratio above 0.
    assert 0 < PUBLISHED["retryThrottling"]["maxTokens"] <= 1000
    assert PUBLISHED["retryThrottling"]["tokenRatio"] > 0


def test_time_limit_for_an_unknown_method_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"order\.v1\.OrderService\.Pay$"):
        service_config.build(SERVICES, timeouts_s={"tally.order.v1.OrderService.Pay": 1.0})


def test_without_timeouts_keeps_everything_else() -> None:
    before = copy.deepcopy(PUBLISHED)
    stripped = at_run_time.without_timeouts(PUBLISHED)
    assert before == PUBLISHED
    assert at_run_time.timeouts_s(stripped) == {}
    for policy in (expected := policies(PUBLISHED)).values():
        policy.pop("timeout", None)
    assert policies(stripped) == expected
    assert {**stripped, "methodConfig": []} == {**PUBLISHED, "methodConfig": []}


def test_config_drift_is_detected(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    published, of_client = tmp_path / "published.json", tmp_path / "of_client.json"
    monkeypatch.setattr(service_config, "PUBLISHED", published)
    monkeypatch.setattr(service_config, "OF_CLIENT", of_client)
    assert generate.drifted_configs() == [published, of_client]
    published.write_text(generate.published_config())
    assert generate.drifted_configs() == [of_client]
    of_client.write_text(published.read_text().replace('"5s"', '"6s"'))
    assert generate.drifted_configs() == [of_client]
    shutil.copy(published, of_client)
    assert generate.drifted_configs() == []
