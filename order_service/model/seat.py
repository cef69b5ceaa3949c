"""Seats of a product: their labels, their states, and which of them an order asks for.

A seat is FREE, RESERVED by an order that is not paid yet, or SOLD to a paid one. It moves with the
stock of its product, in the same transaction and to the same version.
"""

from __future__ import annotations

import enum
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from common.errors import InvalidField
from common.request_key import RequestKey, digest_of
from order_service.model.product import StockMove

ORDER_SEATS_MAX: Final = 100
"""Seats of one order, over all its lines."""
LABEL_BYTES_MAX: Final = 32

_MARKS: Final = " -_.:/"
_INVISIBLE: Final = "\u115f\u1160\u3164\uffa0"
"""Letters that show nothing: the fillers of Hangul."""
_PLAIN: Final = re.compile(r"(?! )(?!.*  )[A-Za-z0-9 _.:/-]{1,32}(?<! )")


class SeatState(enum.StrEnum):
    """The state of a seat."""

    FREE = "FREE"
    RESERVED = "RESERVED"
    SOLD = "SOLD"


MOVES: Final[dict[StockMove, tuple[SeatState, SeatState]]] = {
    StockMove.RESERVE: (SeatState.FREE, SeatState.RESERVED),
    StockMove.RELEASE: (SeatState.RESERVED, SeatState.FREE),
    StockMove.SELL: (SeatState.RESERVED, SeatState.SOLD),
    StockMove.TAKE_BACK: (SeatState.SOLD, SeatState.FREE),
}
"""What a move of an order's stock does to its seats."""


class SeatKey(NamedTuple):
    """What names a seat."""

    product_id: str
    label: str


@dataclass(frozen=True, slots=True)
class AddSeats:
    """Add seats to a product."""

    product_id: str
    labels: tuple[str, ...]
    request_id: str

    @property
    def key(self) -> RequestKey:
        return RequestKey("AddSeats", "", self.request_id)

    @property
    def digest(self) -> bytes:
        # The order of the labels is not content.
        return digest_of(self.product_id, *sorted(self.labels))

    @property
    def seats(self) -> list[SeatKey]:
        return [SeatKey(self.product_id, label) for label in self.labels]


@dataclass(frozen=True, slots=True)
class Seat:
    """A seat at one version of its product."""

    product_id: str
    label: str
    state: SeatState
    order_id: str | None
    """The order that has it; None if it is free."""
    version: int
    """The product's version at the seat's last change."""
    request_id: str
    """The request_id of the AddSeats call that added it."""

    @classmethod
    def new(cls, command: AddSeats, label: str, version: int) -> Seat:
        """A free seat that the command adds."""
        return cls(command.product_id, label, SeatState.FREE, None, version, command.request_id)

    @property
    def key(self) -> SeatKey:
        return SeatKey(self.product_id, self.label)

    @property
    def free(self) -> bool:
        return self.state is SeatState.FREE

    def move(self, what: StockMove, order_id: str, version: int) -> Seat:
        """Move it with the stock of the order. The caller has checked that the order may."""
        before, after = MOVES[what]
        held_by = None if what is StockMove.RESERVE else order_id
        assert (self.state, self.order_id) == (before, held_by), "a seat moves with its order"
        owner = None if after is SeatState.FREE else order_id
        return replace(self, state=after, order_id=owner, version=version)


class MapSeat(NamedTuple):
    """What a map shows of a seat."""

    label: str
    state: SeatState
    version: int
    """The product's version at the seat's last change."""


def check_labels(labels: Sequence[str], field: str) -> None:
    """Raise InvalidField unless the labels are valid and different. ``field``: the list's path."""
    seen: set[str] = set()
    for number, label in enumerate(labels):
        problem = "is given twice" if label in seen else _problem(label)
        if problem:
            raise InvalidField(f"{field}[{number}]", problem)
        seen.add(label)


def is_label(text: str) -> bool:
    """Whether ``text`` can be the label of a seat."""
    return not _problem(text)


def _is_allowed(one: str) -> bool:
    # Other characters that cannot be seen, or that turn text around, are in none of the classes.
    return one in _MARKS or one.isdecimal() or (one.isalpha() and one not in _INVISIBLE)


def _problem(label: str) -> str:
    """What is wrong with a label, '' if nothing is."""
    if _PLAIN.fullmatch(label):
        return ""
    if not 1 <= len(label.encode(errors="replace")) <= LABEL_BYTES_MAX:
        return f"must have 1 to {LABEL_BYTES_MAX} bytes"
    if not all(map(_is_allowed, label)):
        return "must have letters, digits, spaces and - _ . : / only"
    if label != label.strip() or "  " in label:
        return "must have single spaces, and none at its ends"
    if not unicodedata.is_normalized("NFC", label):
        return "must be in normalization form C"
    return ""
