"""Storage: names, listing, whole objects and conditional puts, on local files and real S3."""

import logging
import os
import pickle
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pyarrow as pa
import pytest

from mmray.errors import RefusedError, ShardChanged, StorageError
from mmray.specs.common import StorageOptions
from mmray.storage import Object, Storage, backoff, join, with_backoff
from mmray.storage import names as names_module
from mmray.storage import s3 as s3_module
from mmray.storage.names import expand_braces, glob_regex, normalise
from tests import shards
from tests.conftest import TestServer, use
from tests.faults import FaultProxy


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place to write to, of each kind."""
    if request.param == "local":
        return str(tmp_path / "root")
    uri: str = request.getfixturevalue("s3_uri")
    return uri


def fill(folder: str, *names: str) -> None:
    for name in names:
        Storage().write_bytes(join(folder, name), name.encode())


def names(folder: str, found: list[Object]) -> list[str]:
    return [item.uri.removeprefix(folder + "/") for item in found]


def test_normal_form(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert normalise("a/../b/") == str(tmp_path / "b")
    assert normalise("file:///x/my%20set") == normalise("file://localhost/x/my set") == "/x/my set"
    assert normalise("s3://b/k/") == normalise("s3a://b/k") == "s3://b/k"
    assert join("s3://b/", "/k", "x/") == "s3://b/k/x"
    for wrong in ("gs://b/k", "http://h/x", "s3://"):
        with pytest.raises(RefusedError, match=wrong):
            normalise(wrong)


def test_braces(monkeypatch: pytest.MonkeyPatch) -> None:
    assert expand_braces("a{08..11}.tar") == ["a08.tar", "a09.tar", "a10.tar", "a11.tar"]
    assert expand_braces("{0..11}")[9:] == ["9", "10", "11"]
    assert expand_braces("{2..0}") == ["2", "1", "0"]
    assert expand_braces("{a,b{1..2}}-{x,}") == ["a-x", "a-", "b1-x", "b1-", "b2-x", "b2-"]
    assert expand_braces("{}{a}{") == ["{}{a}{"]
    monkeypatch.setattr(names_module, "MAX_NAMES", 1000)
    for wild in ("{0..99999999999}", "{0..99}{0..99}"):
        with pytest.raises(RefusedError, match="stands for more than"):
            expand_braces(wild)


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("/a/*.tar", ["/a/x.tar", "/a/.tar"], ["/a/b/x.tar", "/a/xtar"]),
        ("/a/**/*.tar", ["/a/x.tar", "/a/b/c/x.tar"], ["/b/x.tar"]),
        ("/a/**", ["/a/x", "/a/b/c"], ["/ab"]),
        ("/a/?[0-9].t", ["/a/x5.t"], ["/a/xx.t", "/a//5.t"]),
        ("/a/[!0-9].t", ["/a/x.t"], ["/a/5.t", "/a//.t"]),
        ("/a/(b)+[", ["/a/(b)+["], ["/a/bb"]),
    ],
)
def test_globs(pattern: str, yes: list[str], no: list[str]) -> None:
    matches = glob_regex(pattern).fullmatch
    assert all(matches(name) for name in yes)
    assert not any(matches(name) for name in no)


def test_list_is_sorted_and_complete(folder: str) -> None:
    every = ["a-b.txt", "a/x.txt", "a/y/z.txt", "a0.txt", "ü.txt"]
    fill(folder, *reversed(every))
    storage = Storage()
    found = list(storage.list(folder))
    assert names(folder, found) == every
    assert [item.size for item in found] == [len(name.encode()) for name in every]
    assert names(folder, list(storage.list(folder, recursive=False))) == [
        "a-b.txt",
        "a0.txt",
        "ü.txt",
    ]
    assert list(storage.list(join(folder, "none"))) == []
    assert [storage.stat(item.uri).etag for item in found] == [item.etag for item in found]
    assert abs(found[0].mtime - time.time()) < 60


def test_expand(folder: str) -> None:
    every = ["00.tar", "01.tar", "02.tar", "d/03.tar", "d/04.tar", "we[i]rd{1,2}.tar"]
    fill(folder, *every)
    storage = Storage()

    def expand(*wanted: str) -> list[str]:
        return names(folder, storage.expand([join(folder, name) for name in wanted]))

    assert names(folder, storage.expand(folder)) == every
    assert expand("{00..02}.tar") == every[:3]
    assert expand("*.tar") == [*every[:3], every[5]]
    assert expand("**/*.tar") == every
    assert expand("d/0?.tar", "d", "02.tar") == every[2:5]
    assert expand("we[i]rd{1,2}.tar") == every[5:]
    for missing in ("03.tar", "{00..03}.tar"):
        with pytest.raises(RefusedError, match=r"03\.tar: does not exist"):
            expand("00.tar", missing)
    with pytest.raises(RefusedError, match="matches nothing"):
        expand("*.jpg")


def test_links_are_not_followed_out(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    for path in (inside, outside):
        path.mkdir()
        (path / "a.txt").write_text("a")
    (inside / "folder").symlink_to(outside)
    (inside / "out.txt").symlink_to(outside / "a.txt")
    (inside / "ok.txt").symlink_to(inside / "a.txt")
    (inside / "dangling.txt").symlink_to(inside / "none")
    os.mkfifo(inside / "pipe.txt")
    assert names(str(inside), list(Storage().list(str(inside)))) == ["a.txt", "ok.txt"]


def test_whole_objects(folder: str) -> None:
    storage, uri = Storage(), join(folder, "x/data.bin")
    with pytest.raises(FileNotFoundError, match=r"data\.bin"):
        storage.read_bytes(uri)
    data = os.urandom(100_000)
    storage.write_bytes(uri, data)
    assert storage.read_bytes(uri) == data
    assert storage.read_range(uri, 10, 30) == data[10:30]
    assert storage.read_range(uri, 99_990, 200_000) == data[99_990:]
    assert storage.read_range(uri, 100_000, 200_000) == b""
    etag = storage.stat(uri).etag
    assert storage.fetch(uri, 0, 5, etag) == (data[:5], etag)
    storage.write_bytes(uri, data[1:])
    with pytest.raises(ShardChanged, match=r"data\.bin"):
        storage.read_range(uri, 0, 5, etag)
    storage.write_bytes(uri, b"")
    assert storage.read_range(uri, 0, 10, storage.stat(uri).etag) == b""
    storage.delete(uri)
    storage.delete(uri)
    assert list(storage.list(folder)) == []


def test_files_to_read_and_write(folder: str) -> None:
    storage, uri = Storage(), join(folder, "y/data.bin")
    with storage.open(uri, "wb") as file:
        file.write(b"hello")
    with storage.open(uri) as file:
        file.seek(1)
        assert file.read() == b"ello"
    with pytest.raises(FileNotFoundError, match=uri + "x"):
        storage.open(uri + "x")


def test_put_if_absent_has_one_winner(folder: str) -> None:
    storage, uri = Storage(), join(folder, "lease")
    won: list[int] = []
    start = threading.Barrier(8)

    def race(i: int) -> None:
        start.wait()
        if storage.put_if_absent(uri, b"%d" % i):
            won.append(i)

    threads = [threading.Thread(target=race, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert storage.read_bytes(uri) == b"%d" % won[0]
    assert names(folder, list(storage.list(folder))) == ["lease"]
    storage.require_conditional_put(folder)


def test_file_systems_agree(folder: str) -> None:
    fill(folder, "a.txt")
    storage = Storage()
    one, path = storage.filesystem(join(folder, "a.txt"))
    assert one.cat_file(path) == b"a.txt"
    assert storage.filesystem(folder)[0] is storage.filesystem(folder)[0]
    two, path = storage.arrow_filesystem(join(folder, "a.txt"))
    with two.open_input_file(path) as file:
        assert file.read() == b"a.txt"


def test_delta(folder: str) -> None:
    from deltalake import DeltaTable, write_deltalake

    uri, options = join(folder, "table"), Storage().delta_options(folder)
    schema = pa.schema([("x", pa.int64())])
    DeltaTable.create(uri, schema, storage_options=options)
    write_deltalake(uri, pa.table({"x": [1, 2]}), mode="append", storage_options=options)
    table = DeltaTable(uri, storage_options=options)
    assert table.version() == 1
    assert table.to_pyarrow_table().num_rows == 2


@pytest.mark.parametrize(
    "name", ["max_retries", "retry_timeout", "timeout", "connect_timeout", "conditional_put"]
)
def test_delta_options_hold_names_that_deltalake_knows(s3_uri: str, name: str) -> None:
    from deltalake import DeltaTable

    options = Storage().delta_options(s3_uri)
    assert name in options
    with pytest.raises(Exception, match=r"(?i)failed to parse"):  # an unknown name isn't parsed
        DeltaTable(s3_uri + "/none", storage_options={**options, name: "nonsense"})


def test_what_deltalake_raises_is_told_apart(own_s3: TestServer) -> None:
    from deltalake import DeltaTable

    storage, uri = Storage(endpoint=own_s3.endpoint), join(own_s3.uri(), "table")
    with pytest.MonkeyPatch.context() as patch:
        use(own_s3.environment, patch)
        options = {**storage.delta_options(uri), "retry_timeout": "1s"}
        DeltaTable.create(uri, pa.schema([("x", pa.int64())]), storage_options=options)
        with pytest.raises(OSError, match="403") as wrong:
            DeltaTable(uri, storage_options={**options, "AWS_SECRET_ACCESS_KEY": "wrong"})
        assert not backoff.is_transient(wrong.value)
        own_s3.kill()
        with pytest.raises(OSError, match="connect") as down:
            DeltaTable(uri, storage_options=options)
        assert backoff.is_transient(down.value)


def test_storage_can_be_pickled_and_shows_no_secret(
    s3_env: dict[str, str], s3_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    storage = Storage.of(StorageOptions(endpoint=s3_env["AWS_ENDPOINT_URL"], region="us-east-1"))
    assert pickle.loads(pickle.dumps(storage)) == storage
    storage.write_bytes(join(s3_uri, "a"), b"1")
    storage.filesystem(s3_uri)
    shown = repr(storage) + repr(s3_module.access(storage).keys(s3_uri)) + caplog.text
    assert s3_env["AWS_SECRET_ACCESS_KEY"] not in shown


def counted(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    pauses: list[float] = []
    monkeypatch.setattr(backoff.time, "sleep", pauses.append)
    return pauses


@pytest.mark.parametrize(
    "error",
    [TimeoutError(), ConnectionResetError(), OSError(5, "i/o"), OSError("HTTP status 503")],
)
def test_passing_errors_are_tried_again(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    pauses = counted(monkeypatch)
    left = [error, error]

    def fn() -> str:
        if left:
            raise left.pop()
        return "done"

    assert with_backoff("s3://b/k", fn) == "done"
    assert len(pauses) == 2

    def never() -> None:
        raise error

    with pytest.raises(StorageError, match="s3://b/k: still failing after 8 attempts") as found:
        with_backoff("s3://b/k", never)
    assert found.value.__cause__ is error
    longest = [0.5, 1, 2, 4, 8, 10, 10]  # each is cut by chance, to the half at most
    assert all(most / 2 <= pause <= most for pause, most in zip(pauses[2:], longest, strict=True))


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError("no errno"),
        PermissionError(13, "x"),
        IsADirectoryError("x"),
        ValueError("x"),
        OSError(28, "disk full"),
        OSError("AWS Error ACCESS_DENIED during GetObject"),
        StorageError("s3://x", "tried already"),
    ],
)
def test_lasting_errors_are_not(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    pauses = counted(monkeypatch)

    def fn() -> None:
        raise error

    with pytest.raises(type(error)) as found:
        with_backoff("s3://b/k", fn)
    assert found.value is error
    assert pauses == []


def calls(storage: Storage, uri: str) -> list[Callable[[], object]]:
    return [
        lambda: storage.read_bytes(uri),
        lambda: storage.stat(uri),
        lambda: list(storage.list(uri)),
        lambda: storage.write_bytes(uri, b""),
        lambda: storage.put_if_absent(uri, b""),
        lambda: storage.expand(uri),
        lambda: storage.require_conditional_put(uri),
    ]


def test_wrong_keys_are_told_at_once(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    pauses = counted(monkeypatch)
    for call in calls(Storage(), join(s3_uri, "k")):
        with pytest.raises((PermissionError, RefusedError), match=f"{s3_uri}.*SignatureDoesNot"):
            call()
    assert pauses == []


def test_missing_buckets_are_told_at_once(
    s3_env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses = counted(monkeypatch)
    for call in calls(Storage(), "s3://no-such-bucket/k"):
        with pytest.raises(
            (FileNotFoundError, RefusedError), match=r"s3://no-such-bucket.*bucket does not exist"
        ):
            call()
    with pytest.raises(RefusedError, match="bucket does not exist"):
        Storage().expand("s3://no-such-bucket/{0..3}/*.tar")
    assert pauses == []


def test_no_keys_and_unknown_profiles_are_told(
    s3_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RefusedError, match=r"profile \(nobody\)"):
        Storage(profile="nobody").expand(s3_uri)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(RefusedError, match=f"{s3_uri}.*redentials"):
        Storage().expand(s3_uri)
    with pytest.raises(PermissionError, match=f"{s3_uri}.*redentials"):
        Storage().delta_options(s3_uri)


def test_a_profile_gives_keys_endpoint_and_region(
    s3_uri: str, s3_env: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config"
    config.write_text(
        f"[profile p]\naws_access_key_id = {s3_env['AWS_ACCESS_KEY_ID']}\n"
        f"aws_secret_access_key = {s3_env['AWS_SECRET_ACCESS_KEY']}\n"
        f"endpoint_url = {s3_env['AWS_ENDPOINT_URL']}\nregion = eu-west-1\n"
    )
    for name in s3_env:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    storage = Storage(profile="p")
    fill_uri = join(s3_uri, "a")
    storage.write_bytes(fill_uri, b"1")
    assert storage.filesystem(fill_uri)[0].cat_file(fill_uri.removeprefix("s3://")) == b"1"
    assert storage.delta_options(s3_uri)["AWS_REGION"] == "eu-west-1"
    assert storage.delta_options(s3_uri)["AWS_ALLOW_HTTP"] == "true"


def test_a_role_is_assumed_and_renewed(
    s3_uri: str, s3_env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    class Sts(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
            # Within botocore's refresh window: the next use must ask again.
            expires = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 300))
            body = (
                "<AssumeRoleResponse><AssumeRoleResult><Credentials>"
                f"<AccessKeyId>{s3_env['AWS_ACCESS_KEY_ID']}</AccessKeyId>"
                f"<SecretAccessKey>{s3_env['AWS_SECRET_ACCESS_KEY']}</SecretAccessKey>"
                f"<SessionToken>token{len(asked)}</SessionToken><Expiration>{expires}</Expiration>"
                "</Credentials></AssumeRoleResult></AssumeRoleResponse>"
            ).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Sts) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", f"http://127.0.0.1:{server.server_port}")
        storage = Storage(role="arn:aws:iam::123456789012:role/reader")
        first = storage.delta_options(s3_uri)["AWS_SESSION_TOKEN"]
        second = storage.delta_options(s3_uri)["AWS_SESSION_TOKEN"]
        server.shutdown()
    assert first != second
    assert "role%2Freader" in asked[0]


def test_a_tenth_of_requests_failing_goes_unnoticed(
    s3: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = s3.uri("faults")
    monkeypatch.setattr(backoff, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(s3_module, "CLIENT_ATTEMPTS", 1)
    kinds = ("500", "503", "reset", "cut")
    with FaultProxy(s3.endpoint, fraction=0.2, seed=3, kinds=kinds) as proxy:
        use(s3.environment_at(proxy.endpoint), monkeypatch)
        storage = Storage()
        for i in range(15):
            data = os.urandom(50_000)
            storage.write_bytes(f"{uri}/{i:02d}", data)
            assert storage.read_range(f"{uri}/{i:02d}", 100, 40_000) == data[100:40_000]
            assert storage.put_if_absent(f"{uri}/once{i:02d}", b"%d" % i)
            assert not storage.put_if_absent(f"{uri}/once{i:02d}", b"other")
        assert len(storage.expand(uri)) == 30
        assert proxy.counts["faults"] > 10


def test_a_server_that_restarts_is_waited_for(
    own_s3: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(own_s3.environment, monkeypatch)
    storage, uri = Storage(), join(own_s3.uri(), "a.tar")
    data = shards.sample_tar(3)
    storage.write_bytes(uri, data)
    own_s3.kill()
    back = threading.Timer(6, own_s3.start)
    back.start()
    try:
        assert storage.read_bytes(uri) == data
        assert storage.put_if_absent(uri + "2", b"1")
    finally:
        back.join()


def test_a_server_without_conditional_puts_is_refused(
    s3_uri: str, s3_env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ignores(BaseHTTPRequestHandler):
        status = 200

        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            conditional = "If-None-Match" in self.headers
            self.send_response(self.status if conditional else 200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_DELETE(self) -> None:
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Ignores) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        storage = Storage(endpoint=endpoint)
        with pytest.raises(RefusedError, match=f"{endpoint} has no conditional put"):
            storage.require_conditional_put(s3_uri)
        Ignores.status = 501
        with pytest.raises(RefusedError, match=f"{endpoint} has no conditional put"):
            storage.require_conditional_put(s3_uri)
        server.shutdown()
