"""The simulator as a child process, for tests."""

from __future__ import annotations

import os
import secrets
import selectors
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import httpx

_START_S_MAX: Final = 20.0
_STOP_S_MAX: Final = 10.0


class GatewaySimulator:
    """A gateway process over one data file; as a context manager it runs and stops with the block.

    ``kill`` and ``start`` may be called in between: the address, the secret key and the record
    stay the same.
    """

    def __init__(
        self,
        data_file: Path,
        port: int = 0,
        latency_ms: tuple[int, int] = (5, 20),
        slow_ms: int = 3000,
    ) -> None:
        """Describe the process; nothing runs before ``start``."""
        self._data_file = data_file
        self._port = port
        self._latency_ms = latency_ms
        self._slow_ms = slow_ms
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""
        self.secret_key = f"test_sk_{secrets.token_hex(16)}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The running process."""
        return self._running().pid

    def start(self) -> None:
        """Start the process and wait until it answers; RuntimeError when it does not."""
        assert self._process is None
        low_ms, high_ms = self._latency_ms
        command = [
            *(sys.executable, "-m", "deploy.local.gateway"),
            *("--port", str(self._port), "--data-file", str(self._data_file)),
            *("--secret-key-file", str(self._secret_key_file())),
            *("--latency-ms", f"{low_ms}-{high_ms}", "--slow-ms", str(self._slow_ms)),
        ]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE)
        line = self._first_line()
        if not line.startswith("listening on "):
            self.kill()
            raise RuntimeError("the gateway simulator did not start")
        self.url = line.removeprefix("listening on ")
        self._port = int(self.url.rpartition(":")[2])

    def stop(self) -> int | None:
        """Ask the process to end and return its exit code; nothing when none runs."""
        if self._process is None:
            return None
        self._process.terminate()
        try:
            code = self._process.wait(_STOP_S_MAX)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        self._forget()
        return code

    def kill(self) -> None:
        """End the process as kill -9 does."""
        process = self._running()
        process.kill()
        process.wait()
        self._forget()

    def charges(self) -> dict[str, dict[str, Any]]:
        """Return the record of every payment key ever confirmed or cancelled, by key.

        Each holds ``confirmCalls``, ``cancelCalls`` and ``payment``: Toss' payment object, or
        None when no call left anything behind.
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

    def _running(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    def _forget(self) -> None:
        process = self._running()
        if process.stdout is not None:
            process.stdout.close()
        self._process = None

    def _secret_key_file(self) -> Path:
        file = self._data_file.with_name(f"{self._data_file.name}.key")
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as opened:
            opened.write(self.secret_key)
        return file

    def _first_line(self) -> str:
        stdout = self._running().stdout
        assert stdout is not None
        deadline = time.monotonic() + _START_S_MAX
        received = b""
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            while not received.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    break
                chunk = os.read(stdout.fileno(), 4096)
                if not chunk:
                    break
                received += chunk
        return received.decode().strip()
