"""The ids in the log lines of a trace, which is in no database."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

TRACE: Final = re.compile(r"[0-9a-f]{32}")
IDS_MAX: Final = 10
FILE_BYTES_MAX: Final = 64 * 1024 * 1024
"""Of each file, so much of its end is read."""


def ids_of_trace(logs: Path, trace_id: str) -> list[str]:
    """The order_ids of the lines with this trace_id in the files of the directory, IDS_MAX at most;
    without any, their request_ids. Raises OSError.
    """
    orders: dict[str, None] = {}
    requests: dict[str, None] = {}
    for file in sorted(logs.glob("*.log")):
        for line in _lines(file, trace_id.encode()):
            if line.get("trace_id") == trace_id:
                orders |= _text(line, "order_id")
                requests |= _text(line, "request_id")
    return [*(orders or requests)][:IDS_MAX]


def _lines(file: Path, part: bytes) -> Iterator[dict[str, Any]]:
    with file.open("rb") as lines:
        size = lines.seek(0, os.SEEK_END)
        lines.seek(max(0, size - FILE_BYTES_MAX))
        for text in lines:
            if part in text:
                try:
                    line = json.loads(text)
                except ValueError:
                    continue  # no line of a service, or the end of one
                if isinstance(line, dict):
                    yield line


def _text(line: dict[str, Any], field: str) -> dict[str, None]:
    value = line.get(field)
    return {value: None} if isinstance(value, str) and value else {}
