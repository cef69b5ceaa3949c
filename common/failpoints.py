"""Failpoints: named places where a test lets this process fail, to prove that nothing is lost.

They exist before and after every commit, call and publish. They are off unless TALLY_FAILPOINTS_DIR
names a directory, and refused where a client of another machine could reach the service. Each place
asks the flag ``enabled`` first, so that a place that is off costs one look at it.

A test arms a failpoint by a file in the directory, also while the processes run. The process that
removes the file fires: once, and no other process. A firing is on disk before its action begins.
"""

from __future__ import annotations

import asyncio
import enum
import ipaddress
import json
import os
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from common.environment import PREFIX, SettingsError
from tally_client.rpc.addresses import split_host_port

VARIABLE: Final = f"{PREFIX}FAILPOINTS_DIR"

enabled = False
"""Whether a test has turned failpoints on. Set once, at the start of the process."""


class Action(enum.Enum):
    """What happens at a failpoint."""

    KILL = "kill"
    """SIGKILL to the process itself."""
    PAUSE = "pause"
    """The event loop stands still for ``pause_s``, as if the whole process had been frozen."""
    ERROR = "error"
    """The error that a lost connection has at this place. After a commit or call, which has had
    its effect then, this is a lost reply."""
    CANCEL = "cancel"
    """CancelledError, as if the task at this place had been cancelled."""


@dataclass(frozen=True, slots=True)
class Armed:
    """A failpoint that fires once."""

    name: str
    action: Action
    process: str = ""
    """The service or the replica in which it may fire; '': any."""
    pause_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Fired:
    """The record of a firing."""

    name: str
    action: Action
    replica: str
    pid: int


class _Place:
    """The directory, and which process this is."""

    directory = Path()
    processes: frozenset[str] = frozenset()
    replica = ""
    reached: Final[set[str]] = set()


def start(*, service: str, replica: str, bind: str, urls: Iterable[str]) -> None:
    """Turn failpoints on if the variable is set. Raises SettingsError where they are refused.

    ``urls``: the addresses of every server that this process uses.
    """
    global enabled  # noqa: PLW0603 - the one flag that every place reads
    directory = os.environ.get(VARIABLE, "")
    if not directory:
        return
    if not _is_loopback(split_host_port(bind)[0].strip("[]")):
        raise SettingsError(
            f"{VARIABLE}: for tests only, refused unless BIND is a loopback address"
        )
    if any(map(_uses_tls, urls)):
        raise SettingsError(f"{VARIABLE}: for tests only, refused where a URL asks for TLS")
    _Place.directory = Path(directory)
    _Place.processes = frozenset({"", service, replica})
    _Place.replica = replica
    for part in ("armed", "reached"):
        (_Place.directory / part).mkdir(parents=True, exist_ok=True)
    enabled = True


def hit(name: str, error: Callable[[], Exception] = ConnectionResetError) -> None:
    """Fire the failpoint if it is armed for this process; ask ``enabled`` before the call.

    ``error``: what a lost connection raises at this place.
    """
    if name not in _Place.reached:
        _Place.reached.add(name)
        (_Place.directory / "reached" / name).touch()
    armed = _take(name)
    if armed is None:
        return
    _record(Fired(name, armed.action, _Place.replica, os.getpid()))
    match armed.action:
        case Action.KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        case Action.PAUSE:
            # Blocks the event loop on purpose.
            time.sleep(armed.pause_s)
        case Action.ERROR:
            raise error()
        case Action.CANCEL:
            raise asyncio.CancelledError


def _take(name: str) -> Armed | None:
    """The failpoint, if it is armed for this process and no other process was first."""
    file = _Place.directory / "armed" / name
    try:
        armed = _read(file)
        if armed.process not in _Place.processes:
            return None
        file.unlink()
    except FileNotFoundError:
        return None
    return armed


def _read(file: Path) -> Armed:
    fields = json.loads(file.read_text())
    return Armed(**{**fields, "action": Action(fields["action"])})


def _record(fired: Fired) -> None:
    line = json.dumps({**asdict(fired), "action": fired.action.value}) + "\n"
    log = os.open(_Place.directory / "fired", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(log, line.encode())
        os.fsync(log)
    finally:
        os.close(log)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _uses_tls(url: str) -> bool:
    mode = url.partition("sslmode=")[2] or url.partition("ssl=")[2]
    return url.startswith(("rediss:", "rediss+", "https:")) or mode not in {"", "disable"}


# -- the side of the test ------------------------------------------------------------------------


def arm(directory: Path, armed: Armed) -> None:
    """Arm a failpoint of the processes that use ``directory``."""
    (directory / "armed").mkdir(parents=True, exist_ok=True)
    # Complete when it appears: another process may read it at once.
    draft = directory / f"{armed.name}.draft"
    draft.write_text(json.dumps({**asdict(armed), "action": armed.action.value}))
    draft.replace(directory / "armed" / armed.name)


def disarm_all(directory: Path) -> None:
    """Disarm what has not fired."""
    for file in (directory / "armed").iterdir():
        file.unlink(missing_ok=True)


def fired(directory: Path) -> list[Fired]:
    """Every firing so far."""
    log = directory / "fired"
    lines = log.read_text().splitlines() if log.exists() else []
    return [
        Fired(**{**fields, "action": Action(fields["action"])}) for fields in map(json.loads, lines)
    ]


def reached(directory: Path) -> set[str]:
    """The names of all places that were passed so far, armed or not."""
    return {file.name for file in (directory / "reached").iterdir()}
