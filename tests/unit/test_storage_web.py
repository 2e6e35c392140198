"""Guarded http against a real server on loopback: what is let through, and what is not."""

from __future__ import annotations

import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mmray.errors import BadSample
from mmray.storage import web
from mmray.storage.web import Url, Web, is_public

Reply = Callable[[BaseHTTPRequestHandler], None]


class Server(ThreadingHTTPServer):
    """Answers by path; `asked` are the paths and headers that came."""

    daemon_threads = True
    replies: dict[str, Reply]

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.replies = {}
        self.asked: list[tuple[str, dict[str, str]]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that leave early are what some tests are about."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append((self.path, dict(self.headers)))
        reply = self.server.replies.get(self.path.partition("?")[0])
        (reply or status(404))(self)

    def log_message(self, *args: object) -> None:
        """Nothing."""


def body(data: bytes, **headers: str) -> Reply:
    def reply(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        for name, value in ({"Content_Length": str(len(data))} | headers).items():
            if value:
                handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(data)

    return reply


def status(code: int, location: str = "") -> Reply:
    def reply(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        handler.send_header("Content-Length", "0")
        if location:
            handler.send_header("Location", location)
        handler.end_headers()

    return reply


def in_turn(*replies: Reply) -> Reply:
    left = list(replies)

    def reply(handler: BaseHTTPRequestHandler) -> None:
        (left.pop(0) if len(left) > 1 else left[0])(handler)

    return reply


def without_length(data: bytes) -> Reply:
    def reply(handler: BaseHTTPRequestHandler) -> None:
        handler.close_connection = True
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(data)

    return reply


def endless(piece: bytes, pause: float) -> Reply:
    def reply(handler: BaseHTTPRequestHandler) -> None:
        handler.close_connection = True
        handler.send_response(200)
        handler.end_headers()
        while True:
            handler.wfile.write(piece)
            time.sleep(pause)

    return reply


@contextmanager
def serving(tls: ssl.SSLContext | None = None) -> Iterator[Server]:
    with Server() as running:
        if tls is not None:
            running.socket = tls.wrap_socket(running.socket, server_side=True)
        thread = threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "FIRST_PAUSE", 0.001)


def error_of(client: Web, url: str, limit: int = 1000) -> str:
    with pytest.raises(BadSample) as found:
        client.get(url, limit)
    assert len(found.value.message) <= 500
    return found.value.error_type


def test_a_body_comes_whole(server: Server) -> None:
    server.replies = {"/i/a b.jpg": body(b""), "/i/a%20b.jpg": body(b"data"), "/": body(b"root")}
    client = Web([server.url], allow_private=True)
    assert client.get(f"{server.url}/i/a%20b.jpg?x=1&y=%2F", 4) == b"data"
    assert client.get(server.url, 10) == b"root"
    path, headers = server.asked[0]
    assert path == "/i/a%20b.jpg?x=1&y=%2F"
    assert headers["Host"] == server.url.removeprefix("http://")
    assert headers["Accept-Encoding"] == "identity"
    assert "Authorization" not in headers


def test_names_in_any_script(server: Server) -> None:
    server.replies = {"/%E6%97%A5.jpg": body(b"data")}
    assert Web([server.url], allow_private=True).get(f"{server.url}/日.jpg", 10) == b"data"


def test_loopback_is_refused_unless_private_is_allowed(server: Server) -> None:
    server.replies = {"/a": body(b"data")}
    port = server.server_address[1]
    for host in ("127.0.0.1", "localhost", "2130706433", "0x7f.1", "127.1", "0.0.0.0", "[::1]"):
        url = f"http://{host}:{port}"
        assert error_of(Web([url]), f"{url}/a") == "LinkRefused"
    assert server.asked == []


PUBLIC = "8.8.8.8 1.1.1.1 2606:4700:4700::1111 ::ffff:8.8.8.8 64:ff9b::808:808 2002:808:808::"
PRIVATE = (
    "0.0.0.0 0.1.2.3 10.0.0.1 100.64.0.1 100.100.100.200 127.0.0.1 127.9.9.9 168.63.129.16 "
    "169.254.169.254 172.16.0.1 172.31.255.255 192.0.0.192 192.0.2.1 192.88.99.1 192.168.1.1 "
    "198.18.0.1 198.51.100.1 203.0.113.1 224.0.0.1 239.255.255.250 240.0.0.1 255.255.255.255 "
    ":: ::1 ::7f00:1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:169.254.169.254 64:ff9b::7f00:1 "
    "64:ff9b::a9fe:a9fe 64:ff9b:1::1 100::1 2001::1 2001:db8::1 2002:7f00:1:: 2002:a00:1:: fc00::1 "
    "fd00:ec2::254 fe80::1 fe80::1%1 fec0::1 ff02::1"
)


@pytest.mark.parametrize("text", PUBLIC.split())
def test_addresses_on_the_open_internet(text: str) -> None:
    assert is_public(ipaddress.ip_address(text))


@pytest.mark.parametrize("text", PRIVATE.split())
def test_addresses_that_are_not(text: str) -> None:
    assert not is_public(ipaddress.ip_address(text))


def test_the_address_that_was_checked_is_the_one_connected_to(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that is public when looked up first and private a moment later."""
    answers = ["192.0.2.7", "127.0.0.1"]
    connected: list[object] = []
    port = server.server_address[1]

    def lookup(host: str, port: int, *_: object, **__: object) -> list[tuple[object, ...]]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (answers.pop(0), port))]

    def connect(address: object, timeout: float) -> socket.socket:
        connected.append(address)
        raise OSError("no way there")

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    monkeypatch.setattr(socket, "create_connection", connect)
    monkeypatch.setattr(web, "is_public", lambda address: str(address) == "192.0.2.7")
    monkeypatch.setattr(web, "ATTEMPTS", 1)
    client = Web([f"http://rebinding.test:{port}"])
    assert error_of(client, f"http://rebinding.test:{port}/a") == "LinkBroken"
    assert connected == [("192.0.2.7", port)]
    assert error_of(client, f"http://rebinding.test:{port}/a") == "LinkRefused"


def test_of_several_addresses_the_good_ones_are_used(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.replies = {"/a": body(b"data")}
    port = server.server_address[1]

    def lookup(host: str, port: int, *_: object, **__: object) -> list[tuple[object, ...]]:
        every = ("10.0.0.1", "127.0.0.2", "127.0.0.1") if host == "h.test" else (host,)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (at, port)) for at in every]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    monkeypatch.setattr(web, "is_public", lambda address: str(address).startswith("127."))
    assert Web([f"http://h.test:{port}"]).get(f"http://h.test:{port}/a", 10) == b"data"


def test_prefixes_are_compared_by_their_parts(server: Server) -> None:
    server.replies = {"/images/a": body(b"1"), "/images": body(b"2")}
    host = server.url
    for prefix in ("/images", "/images/"):
        client = Web([host + prefix], allow_private=True)
        assert client.get(host + "/images/a", 10) == b"1"
        assert client.get(host + "/images", 10) == b"2"
        refused = [
            host,
            host + "/imagesX/a",
            host + "/image",
            host + "/images/../secret",
            host + "/images/%2e%2e/secret",
            host + "/images/%252e%252e/secret",
            host + "/images/..%2fsecret",
            host + "/images/..;/secret",
            host + "/images/./a",
            host.replace("http:", "https:") + "/images/a",
            host.replace("http:", "ftp:") + "/images/a",
            host.replace("127.0.0.1", "localhost") + "/images/a",
            "http://127.0.0.1/images/a",
            host.replace("http://", "http://127.0.0.1:1@") + "/images/a",
            host.replace("http://", "http://user:password@") + "/images/a",
            host + "\\@evil.test/images/a",
            host + "/images/a\r\nX: y",
            host + "/images/a b",
            host + "/images/" + "x" * 9000,
            "http:///images/a",
            "http://[::1/images/a",
            "http://127.0.0.1:99999/images/a",
            "http://a..b/images/a",
            "//127.0.0.1/images/a",
        ]
        server.asked.clear()
        for url in refused:
            assert error_of(client, url) == "LinkRefused", url
        assert server.asked == []
    assert error_of(Web([]), host + "/images/a") == "LinkRefused"


def test_passwords_are_in_no_message() -> None:
    with pytest.raises(BadSample) as found:
        Url.parse("https://user:geheim@host/a")
    assert "geheim" not in found.value.message


def test_redirects_pass_the_same_checks(server: Server) -> None:
    with serving() as other:
        other.replies = {"/a": body(b"other")}
        server.replies = {
            "/i/a": body(b"data"),
            "/i/1": status(302, "/i/a"),
            "/i/2": status(307, "1"),
            "/i/3": status(301, f"{server.url}/i/2"),
            "/i/4": status(308, "/i/3"),
            "/i/loop": status(302, "/i/loop"),
            "/i/out": status(302, "/secret"),
            "/i/host": status(302, f"{other.url}/a"),
            "/i/file": status(302, "file:///etc/passwd"),
            "/i/none": status(302),
        }
        client = Web([f"{server.url}/i"], allow_private=True)
        for path in ("1", "2", "3"):
            assert client.get(f"{server.url}/i/{path}", 10) == b"data"
        for path in ("4", "loop", "none"):
            assert error_of(client, f"{server.url}/i/{path}") == "LinkBroken"
        for path in ("out", "host", "file"):
            assert error_of(client, f"{server.url}/i/{path}") == "LinkRefused"
        assert other.asked == []
        both = Web([server.url, other.url], allow_private=True)
        assert both.get(f"{server.url}/i/host", 10) == b"other"


def test_a_redirect_to_a_private_address_is_refused(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving() as other:
        server.replies = {"/a": status(302, f"{other.url.replace('127.0.0.1', '127.0.0.2')}/a")}
        monkeypatch.setattr(web, "is_public", lambda address: str(address) == "127.0.0.1")
        client = Web([server.url, other.url.replace("127.0.0.1", "127.0.0.2")])
        assert error_of(client, f"{server.url}/a") == "LinkRefused"
        assert other.asked == []


def test_sizes(server: Server) -> None:
    server.replies = {
        "/ten": body(b"x" * 10),
        "/lying": body(b"x" * 10, Content_Length=str(1 << 40)),
        "/open": without_length(b"x" * 10),
        "/endless": endless(b"x" * 65536, 0),
        "/short": body(b"x" * 5, Content_Length="10", Connection="close"),
    }
    client = Web([server.url], allow_private=True)
    for path in ("/ten", "/open"):
        assert client.get(server.url + path, 10) == b"x" * 10
        assert error_of(client, server.url + path, 9) == "OversizedMember"
    assert error_of(client, server.url + "/lying") == "OversizedMember"
    assert error_of(client, server.url + "/endless", 1_000_000) == "OversizedMember"


def test_a_reply_cut_short_is_no_body(server: Server) -> None:
    def cut(handler: BaseHTTPRequestHandler) -> None:
        handler.close_connection = True
        body(b"x" * 5, Content_Length="10")(handler)

    def chunk(handler: BaseHTTPRequestHandler) -> None:
        handler.close_connection = True
        body(b"5\r\nabc", Content_Length="", Transfer_Encoding="chunked")(handler)

    server.replies = {"/cut": cut, "/chunk": chunk, "/once": in_turn(cut, body(b"whole"))}
    client = Web([server.url], allow_private=True)
    assert error_of(client, server.url + "/cut") == "LinkBroken"
    assert error_of(client, server.url + "/chunk") == "LinkBroken"
    assert client.get(server.url + "/once", 10) == b"whole"


def test_compressed_replies_are_refused(server: Server) -> None:
    server.replies = {"/a": body(b"x", Content_Encoding="gzip")}
    assert error_of(Web([server.url], allow_private=True), server.url + "/a") == "LinkBroken"


@pytest.mark.parametrize(
    ("code", "kind", "asked"),
    [
        (404, "LinkMissing", 1),
        (410, "LinkMissing", 1),
        (403, "LinkBroken", 1),
        (401, "LinkBroken", 1),
        (204, "LinkBroken", 1),
        (429, "LinkBroken", 4),
        (500, "LinkBroken", 4),
        (503, "LinkBroken", 4),
    ],
)
def test_statuses(server: Server, code: int, kind: str, asked: int) -> None:
    server.replies = {"/a": status(code)}
    client = Web([server.url], allow_private=True)
    for times in (1, 2):
        with pytest.raises(BadSample, match=f"http status {code}") as found:
            client.get(server.url + "/a?signature=geheim", 10)
        assert found.value.error_type == kind
        assert "geheim" not in found.value.message
        assert len(server.asked) == asked * times


def test_what_passes_is_waited_for(server: Server) -> None:
    server.replies = {"/a": in_turn(status(503), status(429), status(500), body(b"data"))}
    assert Web([server.url], allow_private=True).get(server.url + "/a", 10) == b"data"


def test_a_host_that_is_down_is_not_waited_for_again_and_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    tries = 0
    connect = socket.create_connection

    def counting(*args: object) -> socket.socket:
        nonlocal tries
        tries += 1
        return connect(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "create_connection", counting)
    client = Web([url], allow_private=True)
    assert error_of(client, url + "/a") == "LinkBroken"
    assert tries == 4
    for _ in range(3):
        assert error_of(client, url + "/b") == "LinkBroken"
    assert tries == 7


def test_a_host_that_does_not_exist() -> None:
    assert error_of(Web(["http://nowhere.invalid"]), "http://nowhere.invalid/a") in (
        "LinkBroken",
        "LinkRefused",
    )


def test_slow_replies_end(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(handler: BaseHTTPRequestHandler) -> None:
        time.sleep(1)

    server.replies = {"/drip": endless(b"x", 0.02), "/silent": silent}
    client = Web([server.url], allow_private=True)
    monkeypatch.setattr(web, "TOTAL_SECONDS", 0.15)
    start = time.monotonic()
    assert error_of(client, server.url + "/drip") == "LinkBroken"
    monkeypatch.setattr(web, "READ_SECONDS", 0.05)
    assert error_of(client, server.url + "/silent") == "LinkBroken"
    assert time.monotonic() - start < 3


def test_proxies_of_the_environment_are_not_used(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    server.replies = {"/a": body(b"data")}
    assert Web([server.url], allow_private=True).get(server.url + "/a", 10) == b"data"


def certificate(folder: Path, name: str) -> Path:
    """A self-signed certificate for a host name, with its key."""
    x509 = pytest.importorskip("cryptography.x509")
    import datetime

    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = folder / f"{name}.pem"
    path.write_bytes(made.public_bytes(pem) + private)
    return path


def test_tls_is_verified_against_the_host_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = certificate(tmp_path, "localhost")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(path)
    with serving(tls) as server:
        server.replies = {"/a": body(b"data"), "/drip": endless(b"x", 0.02)}
        by_name = server.url.replace("http://127.0.0.1", "https://localhost")
        by_address = server.url.replace("http:", "https:")
        unknown = Web([by_name], allow_private=True)
        assert error_of(unknown, by_name + "/a") == "LinkBroken"
        monkeypatch.setenv("SSL_CERT_FILE", str(path))
        client = Web([by_name, by_address], allow_private=True)
        assert client.get(by_name + "/a", 10) == b"data"
        assert error_of(client, by_address + "/a") == "LinkBroken"
        assert [path for path, _ in server.asked] == ["/a"]
        monkeypatch.setattr(web, "TOTAL_SECONDS", 0.2)
        assert error_of(client, by_name + "/drip") == "LinkBroken"
