"""A real Prometheus that scrapes a local stack a few times a second."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from deploy.local.monitors import PACKAGES, RULES, PrometheusServer, prometheus_config

SCRAPE_INTERVAL: Final = "500ms"
RATE_WINDOW: Final = "3s"
"""The range of rates: several scrapes."""
PAST_S: Final = 300
"""How far back ``values`` looks."""


def installed() -> bool:
    return shutil.which("prometheus") is not None


needs_prometheus = pytest.mark.skipif(
    not installed(), reason=f"Prometheus is not installed: `{PACKAGES}` has it"
)


class PrometheusClient:
    """Asks one Prometheus over its HTTP API."""

    def __init__(self, client: httpx.Client) -> None:
        """``client``: its base URL is that of the API."""
        self._client = client

    def values(self, expression: str) -> list[float]:
        """All values of the expression in the last minutes, without NaN."""
        now_s = time.time()
        found = self._get(
            "query_range", query=expression, start=now_s - PAST_S, end=now_s, step="1"
        )
        values = (float(value) for one in found["result"] for _, value in one["values"])
        return [value for value in values if not math.isnan(value)]

    def now(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """The labels and the value of each series of the expression now."""
        found = self._get("query", query=expression)
        return [(one["metric"], float(one["value"][1])) for one in found["result"]]

    def firing(self) -> set[str]:
        """The names of the alerts that fire now."""
        return {labels["alertname"] for labels in self.firing_labels()}

    def firing_labels(self) -> list[dict[str, str]]:
        """The labels of the alerts that fire now."""
        alerts = self._get("alerts")["alerts"]
        return [one["labels"] for one in alerts if one["state"] == "firing"]

    def _get(self, path: str, **parameters: str | float) -> Any:
        reply = self._client.get(path, params=parameters)
        assert reply.is_success, reply.text
        return reply.json()["data"]


@contextmanager
def running_prometheus(
    pages: Mapping[str, Sequence[str]],
    directory: Path,
    *,
    rules: Path = RULES,
    jobs: Iterable[Mapping[str, Any]] = (),
) -> Iterator[PrometheusClient]:
    """Prometheus on a free port, for the metrics pages of services. Enter it in the main thread.

    ``jobs``: what it scrapes beside them, in the words of its configuration.
    """
    program = shutil.which("prometheus")
    assert program is not None
    config = prometheus_config(pages, interval=SCRAPE_INTERVAL, rules=rules)
    config["scrape_configs"] += jobs
    log_file = directory / "prometheus.log"
    with PrometheusServer(program, directory, 0, log_file, config) as server:
        api = f"{server.url}/api/v1"
        with httpx.Client(base_url=api, trust_env=False, timeout=30) as client:
            yield PrometheusClient(client)
