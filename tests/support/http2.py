"""HTTP/2 without a library: what no library sends."""

from __future__ import annotations

import asyncio
import struct
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final, NamedTuple
from urllib.parse import unquote

from hpack import Decoder

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
CONTINUATION: Final = 9
END_STREAM, ACK, END_HEADERS = 1, 1, 4
INITIAL_WINDOW_SIZE: Final = 4
WINDOW: Final = 65_535
FRAME_BYTES_MAX: Final = 16_384
CANCEL: Final = 8
ENHANCE_YOUR_CALM: Final = 11

POST: Final = b"\x83"
HTTP: Final = b"\x86"


class Frame(NamedTuple):
    kind: int
    flags: int
    stream: int
    payload: bytes

    @property
    def ends_stream(self) -> bool:
        """Whether the server has ended the frame's stream with it."""
        return self.kind == RST_STREAM or bool(
            self.kind in {DATA, HEADERS} and self.flags & END_STREAM
        )


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    head = struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream)
    return head + payload


READS_NOTHING: Final = PREFACE + frame(
    SETTINGS, payload=INITIAL_WINDOW_SIZE.to_bytes(2, "big") + bytes(4)
)
"""The opening of a client that does not accept a byte of any response."""


def header(name: bytes, value: bytes) -> bytes:
    """A header that does not enter the table of the connection. Both have at most 126 bytes."""
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value


def call_headers(path: str, *more: tuple[bytes, bytes]) -> bytes:
    """The header block of a call."""
    named = [
        (b":path", path.encode()),
        (b":authority", b"x"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
        *more,
    ]
    return POST + HTTP + b"".join(header(name, value) for name, value in named)


def message(content: bytes, *, length: int | None = None, compressed: bool = False) -> bytes:
    """A message of gRPC; ``length``: what it says that it has."""
    return struct.pack(">BI", compressed, len(content) if length is None else length) + content


class RawConnection:
    """A connection that answers the server's SETTINGS and PING frames, and does nothing else."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer
        self._initial_window = WINDOW
        self._windows = defaultdict[int, int](int)
        """What the server accepts more than at first, by stream; 0: of the connection."""
        self._decoder = Decoder()
        self.ends: dict[int, str] = {}
        """How the server ended streams: gRPC's message, or '' without one."""

    def send(self, kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> None:
        self.writer.write(frame(kind, flags, stream, payload))

    async def next(self) -> Frame:
        """The next frame. Raises IncompleteReadError at the connection's end."""
        while True:
            head = await self._reader.readexactly(9)
            payload = await self._reader.readexactly(int.from_bytes(head[:3], "big"))
            got = Frame(head[3], head[4], int.from_bytes(head[5:], "big"), payload)
            self._note(got)
            if got.kind in {SETTINGS, PING} and not got.flags & ACK:
                self.send(got.kind, ACK, payload=payload if got.kind == PING else b"")
            if got.kind != PING or got.flags & ACK:
                return got

    def _note(self, got: Frame) -> None:
        if got.kind == WINDOW_UPDATE:
            self._windows[got.stream] += int.from_bytes(got.payload, "big")
        elif got.kind == SETTINGS:
            settings = dict(struct.iter_unpack(">HL", got.payload))
            self._initial_window = settings.get(INITIAL_WINDOW_SIZE, self._initial_window)
        block = self._decoder.decode(got.payload) if got.kind == HEADERS else ()
        found = {str(name): str(value) for name, value in block}
        if got.ends_stream:
            self.ends.setdefault(got.stream, unquote(found.get("grpc-message", "")))

    async def end_of(self, *streams: int) -> list[str]:
        """Wait until the server has ended these streams; gRPC's messages."""
        while not self.ends.keys() >= set(streams):
            await self.next()
        return [self.ends[stream] for stream in streams]

    async def upload(self, streams: range, content: bytes) -> None:
        """Send this on each of the streams, as their windows allow, and end none of them.

        Streams that the server ends get no more.
        """
        left = dict.fromkeys(streams, content)
        while left:
            sent = False
            for stream, rest in left.items():
                room = min(WINDOW + self._windows[0], self._initial_window + self._windows[stream])
                part = rest[: max(0, min(room, FRAME_BYTES_MAX))]
                if part:
                    sent = True
                    self.send(DATA, 0, stream, part)
                    self._windows[0] -= len(part)
                    self._windows[stream] -= len(part)
                    left[stream] = rest[len(part) :]
            await self.writer.drain()
            if not sent:
                await self.next()
            left = {
                stream: rest for stream, rest in left.items() if rest and stream not in self.ends
            }

    async def ping(self) -> int | None:
        """Wait for the reply. Returns the code of a GOAWAY that came instead."""
        self.send(PING, payload=b"12345678")
        while True:
            got = await self.next()
            if got.kind == GOAWAY:
                return int.from_bytes(got.payload[4:8], "big")
            if got.kind == PING:
                return None

    async def closed(self) -> None:
        """Wait until the server has closed the connection."""
        with suppress(ConnectionError):
            while await self._reader.read(WINDOW):
                pass


@asynccontextmanager
async def raw_connection(
    address: str, opening: bytes = PREFACE + frame(SETTINGS)
) -> AsyncIterator[RawConnection]:
    """A connection that begins with ``opening``."""
    host, port = address.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(opening)
    try:
        yield RawConnection(reader, writer)
    finally:
        writer.transport.abort()
