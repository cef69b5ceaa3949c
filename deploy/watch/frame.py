"""One picture of 100 by 30 characters or more."""

from __future__ import annotations

import math
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Final

from rich.console import Group, RenderableType
from rich.layout import Layout
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from deploy.local.plan import AUDIT
from deploy.monitoring.views import contention, money, services
from deploy.watch import boxes
from deploy.watch.cells import total
from deploy.watch.figures import BAD, GOOD, QUIET
from deploy.watch.history import History

WIDTH, HEIGHT = 100, 30
_HEIGHTS: Final = {"calls": 8, "lanes": 10, "money": 11}
_WIDTHS: Final = (52, 48)


def frame(replicas: Collection[str], history: History) -> Layout:
    """The picture of the latest reading. ``replicas``: all that the stack should have."""
    layout = Layout()
    layout.split_column(
        Layout(_header(replicas, history), size=1),
        *(
            Layout(name=name, minimum_size=height, ratio=height)
            for name, height in _HEIGHTS.items()
        ),
    )
    _split(
        layout["calls"],
        ("Calls", Group(boxes.calls(history), boxes.service_level(history))),
        ("Refusals and errors", boxes.reasons(history)),
    )
    _split(
        layout["lanes"],
        ("Lanes, per second", boxes.lanes(history)),
        ("Locks and limits", boxes.locks(history)),
    )
    _split(
        layout["money"],
        ("Sagas", Group(boxes.sagas(history), "", boxes.saga_ends(history))),
        ("Money in flight", boxes.payments(history)),
    )
    return layout


def _split(row: Layout, *titled: tuple[str, RenderableType]) -> None:
    row.split_row(
        *(
            Layout(
                Panel(content, title=Text(title, "bold"), title_align="left", border_style=QUIET),
                ratio=ratio,
            )
            for ratio, (title, content) in zip(_WIDTHS, titled, strict=True)
        )
    )


def _header(replicas: Collection[str], history: History) -> Table:
    header = Table.grid(expand=True)
    header.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    header.add_column(justify="right", no_wrap=True)
    clock = datetime.fromtimestamp(history.now.unix_s, UTC).astimezone()
    header.add_row(
        Text.assemble((" Tally ", "bold reverse"), " ", _replicas(replicas, history)),
        Text(f"{clock:%H:%M:%S} ", QUIET),
    )
    return header


def _replicas(replicas: Collection[str], history: History) -> Text:
    """How many replicas serve, and what does not."""
    ready = total(history.values(services.READY))
    serving = 0 if math.isnan(ready) else int(ready)
    # The audit has a page, and serves no calls.
    wanted = sum(not replica.startswith(f"{AUDIT}-") for replica in replicas)
    text = Text(f"{serving} of {wanted} replicas serve", GOOD if serving == wanted else BAD)
    away = sorted(set(replicas) - history.now.replicas)
    if away:
        text.append(f", {', '.join(away)} away" if len(away) < 3 else f", {len(away)} away", BAD)
    if any(history.values(money.BREACHES).values()):
        text.append(", the books do not balance", BAD)
    if any(history.values(contention.REDIS_ABSENT).values()):
        text.append(", locking without Redis", BAD)
    circuits = {
        circuit for (_, circuit), is_open in history.values(services.CIRCUITS).items() if is_open
    }
    if circuits:
        text.append(f", circuit open: {', '.join(sorted(circuits))}", BAD)
    return text
