"""The simulator as a child process."""

from __future__ import annotations

import signal
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx

from deploy.local.plan import PROJECT, plain_environment
from deploy.local.processes import HOST, Child, LocalServer
from deploy.local.secret_files import new_password, write_secret


class GatewaySimulator(LocalServer):
    """A gateway process on one data file; as a context manager it runs during the block.

    After ``kill`` and ``start``, the address, the secret key and the record are the same.
    """

    def __init__(
        self,
        data_file: Path,
        port: int = 0,
        log_file: Path | None = None,
        *,
        latency_ms: tuple[int, int] = (5, 20),
        slow_ms: int = 3000,
    ) -> None:
        """``slow_ms``: how much longer a call of a ``slow_`` key takes."""
        super().__init__("gateway", port, log_file or data_file.with_suffix(".log"))
        self.secret_key = new_password()
        self.url = ""
        self._data_file = data_file
        self._latency_ms = latency_ms
        self._slow_ms = slow_ms

    def start(self) -> None:
        super().start()
        self.url = f"http://{HOST}:{self.port}"

    def _spawn(self) -> Child:
        key_file = self._data_file.with_suffix(".key")
        write_secret(key_file, self.secret_key)
        return Child(
            "gateway",
            [
                *(sys.executable, "-m", "deploy.local.gateway", "--host", HOST),
                *("--port", str(self.port), "--data-file", self._data_file),
                *("--secret-key-file", key_file, "--slow-ms", str(self._slow_ms)),
                *("--latency-ms", "{}-{}".format(*self._latency_ms)),
            ],
            log_file=self.log_file,
            env=plain_environment(),
            cwd=PROJECT,
        )

    def _is_ready(self, child: Child) -> bool:
        return "listening on" in child.log_text()

    def kill(self) -> None:
        """End the process as kill -9 does."""
        assert self.child is not None
        self.child.stop(signal.SIGKILL)
        self.child = None

    def refund_in_dashboard(
        self, payment_key: str, amount_minor: int | None = None, reason: str = "at the counter"
    ) -> None:
        """Give back all that is left of a charge, or an amount, in the gateway's own dashboard."""
        body: dict[str, Any] = {"cancelReason": reason}
        if amount_minor is not None:
            body["cancelAmount"] = amount_minor
        self._control(f"payments/{payment_key}/cancel", body)

    def dashboard_refunds(self) -> dict[str, int]:
        """How much of each payment key was given back in the dashboard, from the data file."""
        refunded = (
            "SELECT payment_key, sum(amount) FROM cancels JOIN dashboard_cancels"
            " USING (transaction_key) GROUP BY payment_key"
        )
        with closing(sqlite3.connect(self._data_file)) as record:
            return dict(record.execute(refunded).fetchall())

    def deposit(self, payment_key: str) -> None:
        """Pay into the virtual account of a ``deposit_`` key."""
        self._control(f"payments/{payment_key}/deposit", {})

    def _control(self, path: str, body: dict[str, Any]) -> None:
        with httpx.Client(auth=(self.secret_key, ""), trust_env=False, timeout=60) as client:
            client.post(f"{self.url}/_simulator/{path}", json=body).raise_for_status()

    def charges(self) -> dict[str, dict[str, Any]]:
        """The record of every payment key that was ever confirmed or cancelled, by key.

        Each has ``confirmCalls``, ``cancelCalls`` and ``payment``: the payment object, or None if
        no call recorded a payment.
        """
        with httpx.Client(auth=(self.secret_key, ""), trust_env=False, timeout=60) as client:
            records = client.get(f"{self.url}/_simulator/charges").raise_for_status().json()
        return {record["paymentKey"]: record for record in records}
