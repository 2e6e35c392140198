"""The test tools themselves: the S3 server, the faulty front, the datasets."""

from __future__ import annotations

import io
import tarfile
import time
from typing import Any

import pytest
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionClosedError,
    EndpointConnectionError,
)
from PIL import Image

from mmray.demo.objectstore import LocalS3
from tests import shards
from tests.conftest import TEST_BUCKET, TestServer
from tests.faults import FaultProxy


def place(uri: str) -> tuple[str, str]:
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    return bucket, prefix


def keys(client: Any, uri: str) -> list[str]:
    bucket, prefix = place(uri)
    found = client.list_objects_v2(Bucket=bucket, Prefix=prefix + "/").get("Contents", [])
    return [item["Key"].removeprefix(prefix + "/") for item in found]


@pytest.mark.parametrize("through_proxy", [False, True])
def test_list_put_get_and_conditional_put(s3: TestServer, through_proxy: bool) -> None:
    with FaultProxy(s3.endpoint, fraction=0.0) as proxy:
        client = s3.client(proxy.endpoint if through_proxy else None)
        uri = s3.uri("basic")
        bucket, prefix = place(uri)
        shards.put(uri, {"a.txt": b"one", "b.bin": b"x" * 3_000_000}, client)
        assert keys(client, uri) == ["a.txt", "b.bin"]

        got = client.get_object(Bucket=bucket, Key=f"{prefix}/b.bin", Range="bytes=5-9")
        assert got["Body"].read() == b"xxxxx"

        client.put_object(Bucket=bucket, Key=f"{prefix}/once", Body=b"1", IfNoneMatch="*")
        with pytest.raises(ClientError) as second:
            client.put_object(Bucket=bucket, Key=f"{prefix}/once", Body=b"2", IfNoneMatch="*")
        assert second.value.response["ResponseMetadata"]["HTTPStatusCode"] == 412
        if through_proxy:
            assert proxy.counts["requests"] >= 6


@pytest.mark.parametrize("through_proxy", [False, True])
def test_a_wrong_secret_is_refused(s3: TestServer, through_proxy: bool) -> None:
    s3.make_bucket(TEST_BUCKET)
    with FaultProxy(s3.endpoint, fraction=0.0) as proxy:
        address = proxy.endpoint if through_proxy else s3.endpoint
        client = s3.client(address, aws_secret_access_key="wrong")
        with pytest.raises(ClientError) as refused:
            client.list_objects_v2(Bucket=TEST_BUCKET)
        assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403


def test_a_missing_bucket_is_missing(s3: TestServer) -> None:
    with pytest.raises(ClientError) as missing:
        s3.client().put_object(Bucket="no-such-bucket", Key="a", Body=b"")
    assert missing.value.response["Error"]["Code"] == "NoSuchBucket"


def test_acknowledged_writes_survive_kill_9(own_s3: TestServer) -> None:
    uri, endpoint = own_s3.uri(), own_s3.endpoint
    client = own_s3.client()
    shards.put(uri, {f"{i}": b"x" * 1000 for i in range(50)}, client)
    own_s3.kill()
    with pytest.raises(EndpointConnectionError):
        keys(client, uri)
    own_s3.start()
    assert own_s3.endpoint == endpoint
    assert len(keys(own_s3.client(), uri)) == 50


def test_a_second_server_takes_the_folder_over_with_keys_and_data(own_s3: TestServer) -> None:
    uri, access_key = own_s3.uri(), own_s3.access_key
    shards.put(uri, {"kept": b"1"}, own_s3.client())
    own_s3.kill()
    with LocalS3(own_s3.folder) as successor:
        assert successor.access_key == access_key
        assert keys(successor.client(), uri) == ["kept"]


def test_the_environment_reaches_boto3(s3_uri: str, s3_env: dict[str, str]) -> None:
    import boto3

    shards.put(s3_uri, {"a": b"1"}, boto3.client("s3"))
    assert keys(boto3.client("s3"), s3_uri) == ["a"]


def test_the_front_fails_its_fraction_and_nothing_is_lost(s3: TestServer) -> None:
    uri = s3.uri("faulty")
    with FaultProxy(s3.endpoint, fraction=0.2, seed=3, hang_seconds=0.3) as proxy:
        failed, client = 0, s3.client(proxy.endpoint)
        for i in range(150):
            try:
                shards.put(uri, {f"{i:03d}": b"x" * 10_000}, client)
            except (ClientError, BotoCoreError):
                failed += 1
        assert proxy.counts["faults"] == failed
        assert 15 <= failed <= 45
        assert {"500", "503", "reset", "hang", "cut"} <= set(proxy.counts)
    present = len(keys(s3.client(), uri))
    assert 150 - failed <= present <= 150
    assert present > 150 - failed, "some writes must land although their reply was lost"


def test_the_front_cuts_downloads(s3: TestServer) -> None:
    uri = s3.uri("cut")
    bucket, prefix = place(uri)
    shards.put(uri, {"big": b"x" * 200_000}, s3.client())
    with FaultProxy(s3.endpoint, fraction=1.0, kinds=("cut",)) as proxy:
        client = s3.client(proxy.endpoint)
        with pytest.raises((BotoCoreError, ConnectionClosedError, OSError)):
            client.get_object(Bucket=bucket, Key=f"{prefix}/big")["Body"].read()
        with proxy.healthy():
            got = client.get_object(Bucket=bucket, Key=f"{prefix}/big")["Body"].read()
    assert len(got) == 200_000


def test_a_paused_server_times_out_and_goes_on(own_s3: TestServer) -> None:
    uri = own_s3.uri()
    shards.put(uri, {"a": b"1"}, own_s3.client())
    own_s3.pause()
    started = time.monotonic()
    import boto3
    from botocore.config import Config

    impatient = boto3.client(
        "s3",
        endpoint_url=own_s3.endpoint,
        aws_access_key_id=own_s3.access_key,
        aws_secret_access_key=own_s3.secret_key,
        region_name="us-east-1",
        config=Config(read_timeout=0.5, retries={"total_max_attempts": 1}),
    )
    with pytest.raises(BotoCoreError):
        keys(impatient, uri)
    assert time.monotonic() - started < 5
    own_s3.resume()
    assert keys(own_s3.client(), uri) == ["a"]


def test_datasets_are_deterministic_and_distinct() -> None:
    first, again = shards.sample_shards(2, 5), shards.sample_shards(2, 5)
    assert first == again
    pictures = {shards.picture(seed) for seed in range(200)}
    captions = {shards.caption(seed) for seed in range(200)}
    assert len(pictures) == len(captions) == 200
    with tarfile.open(fileobj=io.BytesIO(first["00001.tar"])) as archive:
        names = archive.getnames()
    assert names[:3] == ["000005.jpg", "000005.txt", "000005.json"]
    assert len(names) == 15
    assert len(shards.sample_files(4)) == 12


def test_damage_hits_the_named_member() -> None:
    data = shards.sample_tar(3)
    cut = shards.cut_in_member(data, "000001.jpg")
    assert len(cut) < len(data)
    damaged = shards.with_garbage_header(data, "000001.jpg")
    assert len(damaged) == len(data)
    with tarfile.open(fileobj=io.BytesIO(damaged)) as archive:
        assert len(archive.getnames()) == 3, "tarfile itself stops silently at the damage"


def test_odd_images_open_and_bad_ones_do_not() -> None:
    for name, data in shards.odd_images().items():
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            assert image.size == (64, 48), name
    for name, data in shards.bad_images().items():
        if name == "bomb":
            assert len(data) < 200_000
            continue
        with pytest.raises(OSError), Image.open(io.BytesIO(data)) as image:
            image.load()
