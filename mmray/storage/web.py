"""Guarded http GET, for urls that come out of data and may point anywhere.

A url must begin with an allowed prefix, its host is looked up once, the address is checked, and the
connection goes to that very address, so that a name can't be one thing when checked and another
when used. What stays wrong is a BadSample: a host that is down is no reason to end a job.
"""

import http.client
import random
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import quote, unquote, urljoin, urlsplit

from mmray.errors import BadSample

CONNECT_SECONDS = 5.0
READ_SECONDS = 30.0
TOTAL_SECONDS = 300.0
"""Of one reply, however steadily it drips."""
ATTEMPTS = 4
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 10.0
DOWN_SECONDS = 60.0
"""How long a host that stayed broken gets a single attempt for each url."""
MAX_REDIRECTS = 3
MAX_URL = 8192
_PIECE = 1024 * 1024

_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_PORTS = {"http": 80, "https": 443}

# Not to be reached from the outside, though Python calls them global.
_SPECIAL = tuple(
    ip_network(text)
    for text in (
        "192.0.0.0/24",  # IETF protocols; Oracle's metadata
        "192.88.99.0/24",  # relays from IPv6
        "168.63.129.16/32",  # Azure's metadata
        "::/96",  # IPv4-compatible
        "64:ff9b:1::/48",  # local NAT64
        "fec0::/10",  # site-local
    )
)
_NAT64 = IPv6Network("64:ff9b::/96")

Address = tuple[str, int]


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether an address is on the open internet, and so is any IPv4 address within it."""
    if isinstance(address, IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in _NAT64:
            inner = IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
        if address.teredo is not None or address.scope_id is not None:
            return False
    special = any(address.version == net.version and address in net for net in _SPECIAL)
    odd = address.is_multicast or address.is_reserved or address.is_unspecified
    return address.is_global and not (special or odd)


@dataclass(frozen=True, slots=True)
class Url:
    """A url taken apart: lower-case scheme and host, and what to ask the host for."""

    scheme: str
    host: str
    port: int
    path: str
    query: str

    @classmethod
    def parse(cls, text: str) -> "Url":
        """Raises BadSample LinkRefused for what is no plain http url."""
        if len(text) > MAX_URL or any(ord(c) <= 32 or ord(c) == 127 or c == "\\" for c in text):
            raise refused(text, "is too long, or holds spaces, control characters or backslashes")
        try:
            parts = urlsplit(text)
            port = parts.port
            host = (parts.hostname or "").rstrip(".").encode("idna").decode()
        except ValueError as error:
            raise refused(text, f"is no url: {error}") from error
        if parts.scheme not in _PORTS or not host:
            raise refused(text, "is no http or https url with a host")
        if "@" in parts.netloc:
            raise refused("an http url", "holds a user name or password")
        path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
        query = quote(parts.query, safe="/%:@!$&'()*+,;=~-._?")
        if _climbs(path):
            raise refused(text, "holds '..' in its path")
        return cls(parts.scheme, host, port or _PORTS[parts.scheme], path, query)

    def is_under(self, prefix: "Url") -> bool:
        """Whether this begins with `prefix`, compared by the parts between slashes."""
        if (self.scheme, self.host, self.port) != (prefix.scheme, prefix.host, prefix.port):
            return False
        base = prefix.path.rstrip("/")
        return self.path == base or self.path.startswith(base + "/")

    @property
    def place(self) -> str:
        """Host and port as the Host header says them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


def refused(text: str, why: str) -> BadSample:
    """The error of a url that isn't fetched."""
    return BadSample("LinkRefused", f"{text[:200]} {why}")


class Web:
    """Gets what `allow` lets through; `allow_private` lets hosts have any address."""

    def __init__(self, allow: Sequence[str], allow_private: bool = False) -> None:
        self._allow = [Url.parse(text) for text in allow]
        self._allow_private = allow_private
        self._down: dict[str, float] = {}
        self._tls: ssl.SSLContext | None = None
        self._lock = threading.Lock()

    def get(self, text: str, limit: int) -> bytes:
        """The body at a url, at most `limit` bytes. May be called from several threads.

        Raises BadSample: LinkRefused, LinkMissing, LinkBroken, OversizedMember.
        """
        url = self._checked(text)
        for _ in range(MAX_REDIRECTS + 1):
            found = self._patiently(url, limit)
            if isinstance(found, bytes):
                return found
            url = self._checked(urljoin(f"{url.scheme}://{url.place}{url.path}", found))
        raise BadSample("LinkBroken", f"{text[:200]} is redirected over {MAX_REDIRECTS} times")

    def _checked(self, text: str) -> Url:
        url = Url.parse(text)
        if not any(url.is_under(prefix) for prefix in self._allow):
            raise refused(text, "is not under any prefix of source.allow")
        return url

    def _patiently(self, url: Url, limit: int) -> bytes | str:
        """The body, or where a redirect leads; waits out what may pass."""
        attempts = 1 if self._down.get(url.place, 0.0) > time.monotonic() else ATTEMPTS
        for attempt in range(attempts):
            try:
                found = self._once(url, limit)
            except (_Passing, OSError, http.client.HTTPException) as error:
                if attempt == attempts - 1 or isinstance(error, ssl.SSLCertVerificationError):
                    if isinstance(error, OSError):  # a host that answers is up
                        self._down[url.place] = time.monotonic() + DOWN_SECONDS
                    raise broken(url, str(error) or type(error).__name__) from error
                pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2**attempt)
                time.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311
            else:
                self._down.pop(url.place, None)
                return found
        raise ValueError("attempts must be positive")

    def _once(self, url: Url, limit: int) -> bytes | str:
        with _Connection(url, self._addresses(url), self._context(url)) as connection:
            try:
                with connection.get(url) as reply:
                    found = _read(url, reply, limit)
            except (OSError, http.client.HTTPException):
                if not connection.aborted:
                    raise
                found = b""
            if connection.aborted:  # where a body has no length, its end looks like any other
                raise broken(url, f"it takes over {TOTAL_SECONDS:g} s")
            return found

    def _addresses(self, url: Url) -> list[Address]:
        """The addresses of the host that may be connected to."""
        try:
            found = socket.getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM)
        except socket.gaierror as error:
            if error.errno == socket.EAI_AGAIN:
                raise
            raise broken(url, f"its host has no address: {error}") from error
        every = [(str(sockaddr[0]), url.port) for *_, sockaddr in found]
        good = [at for at in every if self._allow_private or is_public(ip_address(at[0]))]
        if not good:
            words = "has a private address; source.allow_private lets it be fetched"
            raise refused(_words(url), words)
        return good

    def _context(self, url: Url) -> ssl.SSLContext | None:
        if url.scheme == "http":
            return None
        with self._lock:
            self._tls = self._tls or ssl.create_default_context()
            return self._tls


class _Passing(Exception):
    """A reply that may be another one later."""


class _Connection(http.client.HTTPConnection):
    """A connection to one of the given addresses, whatever the host's name says by then."""

    def __init__(self, url: Url, addresses: list[Address], tls: ssl.SSLContext | None) -> None:
        super().__init__(url.host, url.port, timeout=READ_SECONDS)
        self._addresses = addresses
        self._tls = tls
        # `sock` is gone as soon as the reply begins, where the server is to close the connection.
        self._open: socket.socket | None = None
        self.aborted = False
        self._timer = threading.Timer(TOTAL_SECONDS, self._abort)
        self._timer.daemon = True

    def __enter__(self) -> "_Connection":
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        self.close()
        if self._open is not None:
            self._open.close()

    def connect(self) -> None:
        """Tries the addresses in turn; TLS is verified against the host's name."""
        self._open = self._connected()
        self._open.settimeout(READ_SECONDS)
        if self._tls is not None:
            self._open = self._tls.wrap_socket(self._open, server_hostname=self.host)
        self.sock = self._open

    def _connected(self) -> socket.socket:
        *others, last = self._addresses
        for address in others:
            try:
                return socket.create_connection(address, CONNECT_SECONDS)
            except OSError:
                continue  # the host has more of them
        return socket.create_connection(last, CONNECT_SECONDS)

    def get(self, url: Url) -> http.client.HTTPResponse:
        """The reply, its body unread."""
        headers = {"Host": url.place, "Accept-Encoding": "identity", "User-Agent": "mmray"}
        self.request("GET", url.path + (f"?{url.query}" if url.query else ""), headers=headers)
        return self.getresponse()

    def _abort(self) -> None:
        self.aborted = True
        if self._open is not None:
            with suppress(OSError):
                # Not TLS's own shutdown: its reader would then take ciphers for the text.
                socket.socket.shutdown(self._open, socket.SHUT_RDWR)


def _read(url: Url, reply: http.client.HTTPResponse, limit: int) -> bytes | str:
    """The body, or where a redirect leads."""
    location = reply.getheader("Location")
    if reply.status in _REDIRECTS and location:
        return location
    if reply.status in _PASSING:
        raise _Passing(f"http status {reply.status}")
    if reply.status in (404, 410):
        raise BadSample("LinkMissing", f"{_words(url)}: http status {reply.status}")
    if reply.status != 200:
        raise broken(url, f"http status {reply.status}")
    if (reply.getheader("Content-Encoding") or "identity").lower() != "identity":
        raise broken(url, "the server compresses what was asked for as it is")
    return _body(url, reply, limit)


def _body(url: Url, reply: http.client.HTTPResponse, limit: int) -> bytes:
    size = reply.length
    pieces: list[bytes] = []
    total = 0
    while total <= limit and (size is None or size <= limit):
        piece = reply.read1(_PIECE)
        if not piece:
            if size is not None and total < size:
                raise http.client.IncompleteRead(b"", size - total)
            return b"".join(pieces)
        pieces.append(piece)
        total += len(piece)
    found = total if size is None else size
    words = f"{_words(url)} has {found:,} bytes or more, over {limit:,}"
    raise BadSample("OversizedMember", words)


def _climbs(path: str) -> bool:
    """Whether a path has a part that some server may read as the folder above."""
    for _ in range(4):  # encoded once more than any server decodes
        if "\\" in path or any(part.partition(";")[0] in (".", "..") for part in path.split("/")):
            return True
        plain = unquote(path)
        if plain == path:
            return False
        path = plain
    return True


def _words(url: Url) -> str:
    # Without the query, which may hold a signature.
    return f"{url.scheme}://{url.place}{url.path}"[:200]


def broken(url: Url, why: str) -> BadSample:
    """The error of a url that can't be fetched."""
    return BadSample("LinkBroken", f"{_words(url)}: {why}"[:500])
