"""The simulator as a child process, for tests."""

from __future__ import annotations

import os
import re
import secrets
import signal
import sys
import time
from pathlib import Path
from typing import Any, Final

import httpx

from deploy.local.plan import PROJECT
from deploy.local.processes import POLL_S, Child, Startable
from deploy.local.readiness import failed_start
from deploy.local.secret_files import write_secret

_START_LIMIT_S: Final = 20.0
_STOP_LIMIT_S: Final = 10.0


class GatewaySimulator(Startable):
    """A gateway process on one data file; as a context manager it runs during the block.

    After ``kill`` and ``start``, the address, the secret key and the record are the same.
    """

    def __init__(
        self, data_file: Path, latency_ms: tuple[int, int] = (5, 20), slow_ms: int = 3000
    ) -> None:
        """``slow_ms``: how much longer a call of a ``slow_`` key takes."""
        self.url = ""
        self.secret_key = f"test_sk_{secrets.token_hex(16)}"
        self.child: Child | None = None
        self._data_file = data_file
        self._port = 0
        self._latency_ms = latency_ms
        self._slow_ms = slow_ms

    def start(self) -> None:
        key_file = self._data_file.with_name(f"{self._data_file.name}.key")
        write_secret(key_file, self.secret_key)
        self.child = Child(
            "gateway",
            [
                *(sys.executable, "-m", "deploy.local.gateway"),
                *("--port", str(self._port), "--data-file", self._data_file),
                *("--secret-key-file", key_file, "--slow-ms", str(self._slow_ms)),
                *("--latency-ms", "{}-{}".format(*self._latency_ms)),
            ],
            log_file=self._data_file.with_name(f"{self._data_file.name}.log"),
            env=os.environ,
            cwd=PROJECT,
        )
        deadline = time.monotonic() + _START_LIMIT_S
        while not (found := re.search(r"listening on (\S+)\n", self.child.log_text())):
            if self.child.exit_code() is not None or time.monotonic() > deadline:
                raise failed_start(self.child, "did not start")
            time.sleep(POLL_S)
        self.url = found[1]
        self._port = int(self.url.rpartition(":")[2])

    def stop(self) -> None:
        if self.child is not None:
            self.child.stop(grace_s=_STOP_LIMIT_S)
            self.child = None

    def kill(self) -> None:
        """End the process as kill -9 does."""
        assert self.child is not None
        self.child.stop(signal.SIGKILL)
        self.child = None

    def charges(self) -> dict[str, dict[str, Any]]:
        """The record of every payment key that was ever confirmed or cancelled, by key.

        Each has ``confirmCalls``, ``cancelCalls`` and ``payment``: the payment object, or None if
        no call recorded a payment.
        """
        records: dict[str, dict[str, Any]] = {}
        more, after = True, ""
        with httpx.Client(auth=(self.secret_key, ""), trust_env=False) as client:
            while more:
                page = client.get(f"{self.url}/_simulator/charges", params={"after": after})
                page.raise_for_status()
                body = page.json()
                records |= {record["paymentKey"]: record for record in body["charges"]}
                more, after = body["more"], max(records, default="")
        return records
