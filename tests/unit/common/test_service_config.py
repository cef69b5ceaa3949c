"""What the published service config says of each method, walked from the descriptors."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions

from common.rpc import service_config
from protos import client_config, generate
from tally.order.v1 import order_pb2
from tests.unit.test_protos import FILES, METHODS, WITHOUT_REQUEST_ID, every_method

PUBLISHED: dict[str, Any] = json.loads(client_config.PUBLISHED.read_text(encoding="utf-8"))
SERVICES = [service for file in FILES for service in file.services_by_name.values()]
LEVELS = MethodOptions.IdempotencyLevel


def policies(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The entry of each method, by its full name; fails if a method has two."""
    found: dict[str, dict[str, Any]] = {}
    for entry in config["methodConfig"]:
        for name in entry["name"]:
            full_name = f"{name['service']}.{name['method']}"
            assert full_name not in found
            found[full_name] = entry
    return found


@every_method
def test_the_level_says_whether_a_repetition_is_safe(method: MethodDescriptor) -> None:
    level = method.GetOptions().idempotency_level
    if method.name.startswith(("Get", "List", "Watch")):
        assert level == LEVELS.NO_SIDE_EFFECTS
    elif "request_id" in method.input_type.fields_by_name:
        assert level == LEVELS.IDEMPOTENT
    else:
        assert level == LEVELS.IDEMPOTENCY_UNKNOWN
        assert method.name in WITHOUT_REQUEST_ID


@every_method
def test_only_what_is_safe_is_retried_and_only_when_unavailable(method: MethodDescriptor) -> None:
    policy = policies(PUBLISHED)[method.full_name]
    if method.name in WITHOUT_REQUEST_ID:
        assert "retryPolicy" not in policy
        return
    retry = policy["retryPolicy"]
    assert retry["retryableStatusCodes"] == ["UNAVAILABLE"]
    assert 2 <= retry["maxAttempts"] <= 5


@every_method
def test_every_call_has_a_time_limit_and_a_stream_none(method: MethodDescriptor) -> None:
    policy = policies(PUBLISHED)[method.full_name]
    if method.server_streaming:
        assert "timeout" not in policy
    elif method.full_name in client_config.TIMEOUTS_S:
        assert policy["timeout"] == f"{client_config.TIMEOUTS_S[method.full_name]:g}s"
    elif method.name.startswith(("Get", "List")):
        assert policy["timeout"] == "5s"
    else:
        assert policy["timeout"] == "10s"


def test_the_published_config_is_about_our_methods_and_nothing_else() -> None:
    assert policies(PUBLISHED).keys() == {method.full_name for method in METHODS}
    assert client_config.text(SERVICES) == client_config.PUBLISHED.read_text(encoding="utf-8")


def test_calls_are_spread_over_healthy_replicas_and_retries_throttled() -> None:
    assert PUBLISHED["loadBalancingConfig"] == [{"round_robin": {}}]
    assert PUBLISHED["healthCheckConfig"] == {"serviceName": ""}
    # What gRPC takes: 1 to 1000 tokens, a ratio above 0.
    assert 0 < PUBLISHED["retryThrottling"]["maxTokens"] <= 1000
    assert PUBLISHED["retryThrottling"]["tokenRatio"] > 0


def test_a_time_limit_of_no_method_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"order\.v1\.OrderService\.Pay$"):
        service_config.build(SERVICES, timeouts_s={"tally.order.v1.OrderService.Pay": 1.0})


def test_without_time_limits_the_rest_stays() -> None:
    before = copy.deepcopy(PUBLISHED)
    stripped = service_config.without_timeouts(PUBLISHED)
    assert before == PUBLISHED
    assert service_config.timeouts_s(stripped) == {}
    for name, policy in policies(PUBLISHED).items():
        rest = {key: value for key, value in policy.items() if key != "timeout"}
        assert policies(stripped)[name] == rest
    assert stripped["retryThrottling"] == PUBLISHED["retryThrottling"]


def test_time_limits_are_found_by_path() -> None:
    found = service_config.timeouts_s(PUBLISHED)
    assert found["/tally.order.v1.OrderService/GetOrder"] == service_config.READ_S
    assert found["/tally.order.v1.OrderService/PayOrder"] == client_config.GATEWAY_S
    assert "/tally.order.v1.OrderService/WatchOrder" not in found
    assert len(found) == len(METHODS) - 1


def test_drift_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    published = tmp_path / "service_config.json"
    monkeypatch.setattr(client_config, "PUBLISHED", published)
    assert generate.config_drifted()
    published.write_text(generate.published_config())
    assert not generate.config_drifted()
    published.write_text(published.read_text().replace('"5s"', '"6s"'))
    assert generate.config_drifted()


def test_a_method_is_known_to_be_repeatable_or_not() -> None:
    methods = order_pb2.DESCRIPTOR.services_by_name["CartService"].methods_by_name
    assert service_config.is_idempotent(methods["GetCart"])
    assert not service_config.is_idempotent(methods["SetCartItem"])
