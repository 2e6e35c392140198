"""A fault-injecting HTTP front for an S3 server, on loopback.

A seeded fraction of requests fails: 500, 503, a reset connection, a hang until the client gives up,
or a reply cut in the middle. The rest passes verbatim, the Host header included: clients sign for
the proxy's address, and SeaweedFS verifies the signature against the Host it is given.
"""

from __future__ import annotations

import random
import socket
import socketserver
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Self
from urllib.parse import urlsplit

FAULTS = ("500", "503", "reset", "hang", "cut")
CHUNK = 1 << 16
ERROR_BODY = (
    '<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code>'
    "<Message>injected</Message><RequestId>fault</RequestId></Error>"
)
REPLIES = {"500": ("Internal Server Error", "InternalError"), "503": ("Slow Down", "SlowDown")}


class FaultProxy:
    """Passes HTTP to `upstream` and fails a `fraction` of requests, drawn with `seed`.

    `kinds` is a subset of `FAULTS`; `hang` holds a request for `hang_seconds`, then resets it.
    `after` lets a write through to the server and loses only its reply for that part of the faults:
    the case in which a client can't tell whether its write happened. `counts` tells what was done.
    """

    def __init__(
        self,
        upstream: str,
        *,
        fraction: float = 0.1,
        seed: int = 0,
        kinds: tuple[str, ...] = FAULTS,
        after: float = 0.3,
        hang_seconds: float = 8.0,
    ) -> None:
        address = urlsplit(upstream)
        self.upstream = (address.hostname or "127.0.0.1", address.port or 80)
        self.fraction = fraction
        self.kinds = kinds
        self.after = after
        self.hang_seconds = hang_seconds
        self.counts: Counter[str] = Counter()
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._server: _Server | None = None

    @property
    def endpoint(self) -> str:
        """URL of the proxy."""
        assert self._server is not None, "the proxy isn't running"
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def start(self) -> Self:
        """Listens on a free port of loopback, in threads of this process."""
        self._server = _Server(("127.0.0.1", 0), _Connection)
        self._server.proxy = self
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def stop(self) -> None:
        """Stops listening and lets hanging requests go."""
        self._closing.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    @contextmanager
    def healthy(self) -> Iterator[None]:
        """Injects nothing within the block."""
        fraction, self.fraction = self.fraction, 0.0
        try:
            yield
        finally:
            self.fraction = fraction

    def draw(self) -> tuple[str, bool]:
        """The fate of the next request: a fault or "", and whether the server still sees it."""
        with self._lock:
            fails = self._random.random() < self.fraction
            kind = self._random.choice(self.kinds)
            after = self._random.random() < self.after
            self.counts["requests"] += 1
            if fails:
                self.counts[kind] += 1
                self.counts["faults"] += 1
        return (kind, after or kind == "cut") if fails else ("", True)

    def wait(self, seconds: float) -> None:
        """Sleeps, unless the proxy stops."""
        self._closing.wait(seconds)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    proxy: FaultProxy

    def handle_error(self, request: object, client_address: object) -> None:
        """Connections that end early are this server's trade."""


class _Connection(socketserver.StreamRequestHandler):
    """One client connection; requests follow each other on it, each with a fate of its own."""

    disable_nagle_algorithm = True

    def handle(self) -> None:
        proxy: FaultProxy = self.server.proxy  # type: ignore[attr-defined]
        upstream = _Upstream(proxy.upstream)
        with suppress(OSError), upstream:
            while (head := read_head(self.rfile)) and self._exchange(proxy, upstream, head):
                pass

    def _exchange(self, proxy: FaultProxy, upstream: _Upstream, head: Head) -> bool:
        """Answers one request; False when the connection must end."""
        fault, forwarded = proxy.draw()
        if head.expects_continue:
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        reply = None
        if forwarded:
            upstream.send(head, body(self.rfile, head))
            reply = upstream.head()
        else:
            drain(body(self.rfile, head))
        if fault in REPLIES:
            if reply is not None:
                drain(upstream.body(head, reply))
            self.wfile.write(error_reply(fault, head))
            return True
        if fault == "hang":
            proxy.wait(proxy.hang_seconds)
        if fault in ("hang", "reset"):
            self._reset()
            return False
        assert reply is not None
        chunks = upstream.body(head, reply)
        if fault == "cut":
            first = next(chunks, b"")
            half = reply.raw + first[: len(first) // 2] if first else reply.raw[:20]
            self.wfile.write(half)
            self._reset()
            return False
        self.wfile.write(reply.raw)
        for chunk in chunks:
            self.wfile.write(chunk)
        return not reply.closes

    def _reset(self) -> None:
        """Ends the connection with RST, as a crashed peer does."""
        with suppress(OSError):
            time.sleep(0.01)  # what was written leaves the send buffer before it is thrown away
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close()


class Head:
    """Start line and headers of one HTTP/1.1 message, verbatim in `raw`."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        lines = raw.decode("latin-1").split("\r\n")
        self.start = lines[0].split(" ")
        pairs = [line.split(":", 1) for line in lines[1:] if ":" in line]
        self.headers = {name.strip().lower(): value.strip() for name, value in pairs}

    @property
    def length(self) -> int:
        return int(self.headers.get("content-length", "0"))

    @property
    def chunked(self) -> bool:
        return "chunked" in self.headers.get("transfer-encoding", "").lower()

    @property
    def expects_continue(self) -> bool:
        return self.headers.get("expect", "").lower() == "100-continue"

    @property
    def closes(self) -> bool:
        return self.headers.get("connection", "").lower() == "close"


class _Upstream:
    """The connection to the real server, opened on first use."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address
        self._socket: socket.socket | None = None

    def send(self, head: Head, chunks: Iterator[bytes]) -> None:
        if self._socket is None:
            self._socket = socket.create_connection(self._address, timeout=60)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._file = self._socket.makefile("rb")
        self._socket.sendall(head.raw)
        for chunk in chunks:
            self._socket.sendall(chunk)

    def head(self) -> Head:
        """The reply's head; interim `100 Continue` replies are dropped, the proxy sent its own."""
        while (head := read_head(self._file)) is not None:
            if head.start[1] != "100":
                return head
        raise ConnectionResetError("the server ended the connection")

    def body(self, request: Head, reply: Head) -> Iterator[bytes]:
        bodiless = request.start[0] == "HEAD" or reply.start[1] in ("204", "304")
        return iter(()) if bodiless else body(self._file, reply)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._socket is not None:
            self._file.close()
            self._socket.close()


def read_head(file: object) -> Head | None:
    """The next message's head, or `None` at the end of the connection."""
    raw = b""
    while not raw.endswith(b"\r\n\r\n"):
        line: bytes = file.readline()  # type: ignore[attr-defined]
        if not line:
            return None
        raw = b"" if (raw + line) == b"\r\n" else raw + line
    return Head(raw)


def body(file: object, head: Head) -> Iterator[bytes]:
    """The message's body as it stands on the wire, chunk framing included."""
    read = file.read  # type: ignore[attr-defined]
    if not head.chunked:
        left = head.length
        while left:
            chunk = read(min(left, CHUNK))
            if not chunk:
                raise ConnectionResetError("the body ended early")
            left -= len(chunk)
            yield chunk
        return
    while True:
        size: bytes = file.readline()  # type: ignore[attr-defined]
        count = int(size.split(b";")[0], 16)
        yield size + read(count + 2)
        if count == 0:
            return


def drain(chunks: Iterator[bytes]) -> None:
    """Reads and drops."""
    for _ in chunks:
        pass


def error_reply(status: str, request: Head) -> bytes:
    """An S3 error reply; without a body where the request was HEAD."""
    reason, code = REPLIES[status]
    text = ERROR_BODY.format(code=code).encode()
    head = (
        f"HTTP/1.1 {status} {reason}\r\nContent-Type: application/xml\r\n"
        f"Content-Length: {len(text)}\r\n\r\n"
    ).encode()
    return head if request.start[0] == "HEAD" else head + text
