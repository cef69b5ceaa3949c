"""Methods that an operator pauses by a file, which is read again while the server runs.

One method per line, ``tally.order.v1.OrderService/CreateOrder``, or a service alone for all of its
methods; ``#`` begins a comment. A file that is missing or empty pauses nothing. One file may be for
all services: each takes the lines of its own. A file with a line that names nothing is rejected as
a whole, and what was paused before stays so.

Calls of the order service are not paused: sagas that are under way end. Where identity is on, the
order service is known by its token, else by the metadata ``CALLER``, which any client can send.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import grpc
import structlog
from prometheus_client import Gauge

from common.metrics import REGISTRY

INTERVAL_S: Final = 1.0
"""Time between two reads of the file."""
BYTES_MAX: Final = 64 * 1024
CALLER: Final = (("tally-caller", "service"),)
"""Metadata of the calls that services make (``common.rpc.client``). It counts where identity is off
only."""

_LINE: Final = re.compile(
    r"/?(?P<service>(?P<package>(?P<root>[a-z]\w*)(?:\.\w+)*\.v\d+)\.[A-Z]\w*)(?:/(?P<method>\w+))?"
)
_NAMES_NOTHING: Final = "is neither package.Service nor package.Service/Method"
_paused = Gauge(
    "tally_paused_methods",
    "Methods of this replica that are paused by TALLY_PAUSE_FILE.",
    registry=REGISTRY,
)
_rejected = Gauge(
    "tally_pause_file_rejected",
    "1 while TALLY_PAUSE_FILE cannot be used, and what was paused before stays so; else 0.",
    registry=REGISTRY,
)
_log = structlog.stdlib.get_logger()


class PauseFileRejected(Exception):  # noqa: N818 - a fact about the file
    """The file cannot be used; the text says why."""


class Pauses:
    """The paused methods of one server."""

    def __init__(self, file: str) -> None:
        """``file``: its path; '' if nothing is ever paused."""
        self.methods: Collection[str] = frozenset()
        """The paused methods by their paths (``/package.Service/Method``), for the handlers."""
        self._file = Path(file) if file else None
        self._own: dict[str, set[str]] = {}
        self._read: bytes | None = None
        self._taken: bytes | None = None
        """The last content that was taken or rejected."""
        self._problem = ""
        _paused.set(0)
        _rejected.set(0)

    def add(self, service: str, methods: Collection[str]) -> None:
        """Let these methods of a service be paused; by their names alone."""
        self._own[service] = {f"/{service}/{method}" for method in methods}

    async def follow(self) -> None:
        """Read the file again and again, whatever happens."""
        while self._file is not None:
            await asyncio.sleep(INTERVAL_S)
            try:
                await self.read()
            except Exception as error:  # noqa: BLE001 - without this task nothing could be paused
                self._taken = None
                self._reject(repr(error)[:200])

    async def read(self) -> None:
        """Read the file once. Of one that cannot be used nothing is taken.

        Content that resumes everything is taken when it was read twice in a row: a file that is
        written in place is empty for a moment.
        """
        if self._file is None:
            return
        try:
            # In a thread: the file may be on a slow file system.
            raw = await asyncio.to_thread(_content_of, self._file)
        except OSError as error:
            self._read = self._taken = None
            self._reject(error.strerror or type(error).__name__)
            return
        again, self._read = raw == self._read, raw
        if raw == self._taken:
            return
        try:
            methods = methods_in(raw, self._own)
        except PauseFileRejected as error:
            self._problem = ""  # of other content
            self._reject(str(error))
        else:
            if self.methods and not methods and not again:
                return
            self._set(methods)
        self._taken = raw

    def _reject(self, reason: str) -> None:
        """What is paused stays as it is. Each problem is logged once."""
        if reason != self._problem:
            _log.error("pause_file_rejected", file=str(self._file), reason=reason)
        self._problem = reason
        _rejected.set(1)

    def _set(self, methods: frozenset[str]) -> None:
        before, self.methods = frozenset(self.methods), methods
        self._problem = ""
        _paused.set(len(methods))
        _rejected.set(0)
        if resumed := sorted(before - methods):
            _log.info("methods_resumed", methods=resumed)
        if methods - before:
            _log.warning("methods_paused", methods=sorted(methods))


def is_marked(context: grpc.aio.ServicerContext[bytes, bytes]) -> bool:
    """Whether the call has the metadata of a service's calls."""
    return any((key, value) in CALLER for key, value in context.invocation_metadata() or ())


def methods_in(raw: bytes, own: Mapping[str, Collection[str]]) -> frozenset[str]:
    """Which of the methods in ``own`` the file's content pauses; ``own``: their paths by service.

    Raises PauseFileRejected.
    """
    if len(raw) > BYTES_MAX:
        raise PauseFileRejected(f"has more than {BYTES_MAX} bytes")
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise PauseFileRejected("is not UTF-8") from None
    packages = {service.rpartition(".")[0] for service in own}
    roots = {package.partition(".")[0] for package in packages}
    found: set[str] = set()
    for number, line in enumerate(text.splitlines(), start=1):
        name = line.partition("#")[0].strip()
        if not name:
            continue
        match = _LINE.fullmatch(name)
        if match is None:
            raise PauseFileRejected(f"line {number}: {name[:200]!r} {_NAMES_NOTHING}")
        service, method = match["service"], match["method"]
        paths = {*own.get(service, ())}
        named = paths & {f"/{service}/{method}"} if method else paths
        elsewhere = (
            match["package"] not in packages
            and match["root"] in roots
            and _has_stubs(match["package"])
        )
        if not (named or elsewhere):
            raise PauseFileRejected(f"line {number}: there is no {name[:200]}")
        found |= named
    return frozenset(found)


def _has_stubs(package: str) -> bool:
    """Whether the contract has this package: its methods are those of another service, which
    checks their names."""
    try:
        return find_spec(package) is not None
    except (ModuleNotFoundError, ValueError):
        return False


def _content_of(file: Path) -> bytes:
    """The file's first bytes, one more than it may have; none if there is no file."""
    try:
        with file.open("rb") as opened:
            return opened.read(BYTES_MAX + 1)
    except FileNotFoundError:
        return b""
