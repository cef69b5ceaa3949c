"""A gRPC connection for load: one HTTP/2 connection that sends unary calls, and little else.

A client of grpc.aio takes about as much processor time per call as the server that it loads: on a
small machine it would be what is measured. This one sends the same frames for less than half of
that. It supports no deadlines, compression or retries, and is for benchmarks only.

Both directions are cheap because headers are compared as bytes. The requests of a method have the
same header block once hpack has indexed it. The client's settings forbid the server to index
(SETTINGS_HEADER_TABLE_SIZE 0), so that equal blocks of a response mean the same headers.
"""

from __future__ import annotations

import asyncio
import struct
from typing import Final, cast
from urllib.parse import unquote

from hpack import Decoder, Encoder

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, ACK, END_HEADERS = 1, 1, 4
HEADER_TABLE_SIZE, ENABLE_PUSH, INITIAL_WINDOW_SIZE = 1, 2, 4
WINDOW_DEFAULT: Final = 65_535
WINDOW_MAX: Final = 2**31 - 1
FRAME_BYTES_MAX: Final = 16_384
"""The size of a frame that every peer has to accept."""
RENEW_AT_BYTES: Final = 1 << 28
"""After so many bytes received, the connection's window is opened again."""


class CallError(Exception):
    """The call ended with a status other than OK, or its connection broke."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"status {code}: {message}")
        self.code = code


RESOURCE_EXHAUSTED: Final = 8
UNAVAILABLE: Final = 14


def frame(kind: int, flags: int, stream: int, payload: bytes | memoryview) -> bytes:
    size = len(payload)
    head = struct.pack(">BHBBL", size >> 16, size & 0xFFFF, kind, flags, stream)
    return head + bytes(payload)


class _Stream:
    """A call that is under way: its reply so far, and what is still to be sent."""

    __slots__ = ("body", "reply", "unsent", "window")

    def __init__(self, reply: asyncio.Future[bytes]) -> None:
        self.reply = reply
        self.body = b""
        self.unsent = memoryview(b"")
        self.window = 0


class Connection(asyncio.Protocol):
    """One connection. ``call`` may be awaited by any number of tasks at once."""

    def __init__(self, authority: str) -> None:
        self._authority = authority
        self._encoder, self._decoder = Encoder(), Decoder()
        self._decoder.header_table_size = 0
        self._blocks: dict[str, bytes] = {}
        self._replies: dict[bytes, dict[str, str]] = {}
        self._streams: dict[int, _Stream] = {}
        self._waiting: list[int] = []
        """Streams whose message does not fit into the windows, in the order of their calls."""
        self._next_stream = 1
        self._window, self._stream_window = WINDOW_DEFAULT, WINDOW_DEFAULT
        self._received_bytes = 0
        self._buffer = b""
        self._closed: CallError | None = None
        self._transport: asyncio.Transport

    @classmethod
    async def open(cls, address: str) -> Connection:
        host, port = address.rsplit(":", 1)
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(lambda: cls(address), host, int(port))
        return connection

    def close(self) -> None:
        self._transport.close()

    def call(self, method: str, message: bytes) -> asyncio.Future[bytes]:
        """The response's bytes. Raises CallError."""
        reply: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        if self._closed is not None:
            reply.set_exception(self._closed)
            return reply
        stream, number = _Stream(reply), self._next_stream
        self._next_stream += 2
        self._streams[number] = stream
        headers = frame(HEADERS, END_HEADERS, number, self._block(method))
        body = struct.pack(">BL", 0, len(message)) + message
        size = len(body)
        if size <= FRAME_BYTES_MAX and size <= min(self._window, self._stream_window):
            self._window -= size
            self._transport.write(headers + frame(DATA, END_STREAM, number, body))
            return reply
        stream.unsent, stream.window = memoryview(body), self._stream_window
        self._waiting.append(number)
        self._transport.write(headers)
        self._send_waiting()
        return reply

    def _block(self, method: str) -> bytes:
        known = self._blocks.get(method)
        if known is not None:
            return known
        table = self._encoder.header_table.dynamic_entries
        indexed = len(table)
        block = self._encoder.encode(
            [
                (":method", "POST"),
                (":scheme", "http"),
                (":path", method),
                (":authority", self._authority),
                ("content-type", "application/grpc"),
                ("te", "trailers"),
            ],
            huffman=False,
        )
        if len(table) != indexed:
            # New entries move the others: every method's block is made again.
            self._blocks.clear()
        else:
            self._blocks[method] = block
        return block

    def _send_waiting(self) -> None:
        while self._waiting and self._window > 0:
            number = next((n for n in self._waiting if self._streams[n].window > 0), None)
            if number is None:
                return
            stream = self._streams[number]
            size = min(len(stream.unsent), self._window, stream.window, FRAME_BYTES_MAX)
            part, stream.unsent = stream.unsent[:size], stream.unsent[size:]
            self._window -= size
            stream.window -= size
            last = not stream.unsent
            self._transport.write(frame(DATA, END_STREAM if last else 0, number, part))
            if last:
                self._waiting.remove(number)

    # -- asyncio.Protocol --------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        settings = ((HEADER_TABLE_SIZE, 0), (ENABLE_PUSH, 0), (INITIAL_WINDOW_SIZE, WINDOW_MAX))
        packed = b"".join(struct.pack(">HL", *setting) for setting in settings)
        self._transport.write(PREFACE + frame(SETTINGS, 0, 0, packed))
        self._renew_window(WINDOW_MAX - WINDOW_DEFAULT)

    def connection_lost(self, error: Exception | None) -> None:
        self._fail(CallError(UNAVAILABLE, f"connection lost: {error or 'closed by the peer'}"))

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer + data if self._buffer else data
        position, end = 0, len(buffer)
        while end - position >= 9:
            size = buffer[position] << 16 | buffer[position + 1] << 8 | buffer[position + 2]
            after = position + 9 + size
            if after > end:
                break
            number = int.from_bytes(buffer[position + 5 : position + 9], "big") & WINDOW_MAX
            kind, flags = buffer[position + 3], buffer[position + 4]
            self._on_frame(kind, flags, number, buffer[position + 9 : after])
            position = after
        self._buffer = buffer[position:]

    # -- frames ------------------------------------------------------------------------------------

    def _on_frame(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if kind == HEADERS:
            if flags & END_STREAM:
                self._end(number, payload)
        elif kind == DATA:
            self._on_data(number, payload)
        elif kind == WINDOW_UPDATE:
            self._on_window(number, int.from_bytes(payload, "big") & WINDOW_MAX)
        elif kind in {SETTINGS, PING}:
            if not flags & ACK:
                self._transport.write(frame(kind, ACK, 0, payload if kind == PING else b""))
                if kind == SETTINGS:
                    self._on_settings(payload)
        elif kind == RST_STREAM and (stream := self._take(number)) is not None:
            stream.reply.set_exception(CallError(UNAVAILABLE, f"reset {payload.hex()}"))
        elif kind == GOAWAY:
            # The calls under way still end; no new one is begun.
            self._closed = CallError(UNAVAILABLE, "the server closes the connection")

    def _on_data(self, number: int, payload: bytes) -> None:
        stream = self._streams.get(number)
        if stream is not None:
            stream.body += payload
        self._received_bytes += len(payload)
        if self._received_bytes > RENEW_AT_BYTES:
            self._renew_window(self._received_bytes)
            self._received_bytes = 0

    def _end(self, number: int, block: bytes) -> None:
        stream = self._take(number)
        if stream is None:
            return
        trailers = self._replies.get(block)
        if trailers is None:
            trailers = {str(name): str(value) for name, value in self._decoder.decode(block)}
            if trailers.get("grpc-status") == "0":
                self._replies[block] = trailers
        code = int(trailers.get("grpc-status", "2"))
        if code:
            stream.reply.set_exception(CallError(code, unquote(trailers.get("grpc-message", ""))))
        else:
            stream.reply.set_result(stream.body[5:])

    def _on_window(self, number: int, more: int) -> None:
        if number == 0:
            self._window += more
        elif number in self._waiting:
            self._streams[number].window += more
        if self._waiting:
            self._send_waiting()

    def _on_settings(self, payload: bytes) -> None:
        for name, value in struct.iter_unpack(">HL", payload):
            if name == INITIAL_WINDOW_SIZE:
                for number in self._waiting:
                    self._streams[number].window += value - self._stream_window
                self._stream_window = value
        self._send_waiting()

    def _renew_window(self, more: int) -> None:
        self._transport.write(frame(WINDOW_UPDATE, 0, 0, struct.pack(">L", more)))

    def _take(self, number: int) -> _Stream | None:
        """Remove a stream that has ended; None if nobody waits for its reply any more."""
        if number in self._waiting:
            self._waiting.remove(number)
        stream = self._streams.pop(number, None)
        return None if stream is None or stream.reply.done() else stream

    def _fail(self, error: CallError) -> None:
        self._closed = error
        streams, self._streams, self._waiting = self._streams, {}, []
        for stream in streams.values():
            if not stream.reply.done():
                stream.reply.set_exception(error)
