"""S3 and what speaks like it: credentials, one client, and the few calls that mmray makes.

Everything goes through one cached `Access` per process, storage options and AWS environment; its
credentials are botocore's, so that s3fs, pyarrow and deltalake see the same ones. Temporary ones
are renewed by botocore before they expire: ask for options anew instead of keeping them.
"""

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import botocore.client
import botocore.config
import botocore.credentials
import botocore.exceptions
import botocore.session

from mmray.errors import ShardChanged, StorageError
from mmray.storage.backoff import is_transient, with_backoff
from mmray.storage.names import split_s3
from mmray.storage.objects import MissingBucket, Object

if TYPE_CHECKING:
    from mmray.storage import Storage

T = TypeVar("T")

CONNECT_SECONDS = 5
READ_SECONDS = 30
# Each of our own calls is tried this often inside botocore, and `with_backoff` goes round that.
CLIENT_ATTEMPTS = 4
# What s3fs and pyarrow try by themselves, since their callers have no loop of their own.
LIBRARY_ATTEMPTS = 8

_lock = threading.Lock()
_cache: dict[tuple[object, ...], "Access"] = {}


@dataclass(frozen=True, slots=True)
class Keys:
    """Credentials as they are now; never in a repr."""

    access: str
    secret: str
    token: str | None

    def __repr__(self) -> str:
        return "Keys(...)"


class Access:
    """One botocore session and client, and where they point."""

    def __init__(self, storage: "Storage") -> None:
        self.session = botocore.session.Session(profile=storage.profile)
        scoped = self.session.get_scoped_config()
        self.endpoint: str | None = (
            storage.endpoint
            or os.environ.get("AWS_ENDPOINT_URL_S3")
            or os.environ.get("AWS_ENDPOINT_URL")
            or scoped.get("endpoint_url")
        )
        self.region: str = (
            storage.region
            or os.environ.get("AWS_REGION")
            or os.environ.get("AWS_DEFAULT_REGION")
            or scoped.get("region")
            or "us-east-1"
        )
        if storage.role:
            self._assume(storage.role)
        self.client: Any = self.session.create_client(
            "s3",
            region_name=self.region,
            endpoint_url=self.endpoint,
            config=botocore.config.Config(**self.config(CLIENT_ATTEMPTS)),
        )
        self.filesystems: dict[object, Any] = {}

    def config(self, attempts: int) -> dict[str, Any]:
        """Arguments of botocore's Config."""
        options: dict[str, Any] = {
            "retries": {"mode": "standard", "max_attempts": attempts},
            "connect_timeout": CONNECT_SECONDS,
            "read_timeout": READ_SECONDS,
            "max_pool_connections": 32,
        }
        if self.endpoint:  # few servers but Amazon's have a host name for each bucket
            options["s3"] = {"addressing_style": "path"}
        return options

    def keys(self, uri: str) -> Keys:
        """Credentials good for at least some minutes; PermissionError where there are none."""
        found = self.session.get_credentials()
        if found is None:
            words = "no credentials in the environment, the AWS profile or the machine's role"
            raise PermissionError(f"{uri}: {words}")
        frozen = call(uri, found.get_frozen_credentials)
        return Keys(frozen.access_key, frozen.secret_key, frozen.token)

    def _assume(self, role: str) -> None:
        sts = self.session.create_client("sts", region_name=self.region)
        refresh = botocore.credentials.create_assume_role_refresher(
            sts, {"RoleArn": role, "RoleSessionName": f"mmray-{os.getpid()}"}
        )
        # botocore's sessions have no setter for credentials that renew themselves.
        self.session._credentials = botocore.credentials.DeferredRefreshableCredentials(
            refresh_using=refresh, method="sts-assume-role"
        )


def access(storage: "Storage") -> Access:
    """The access for `storage` in this process and environment.

    Raises PermissionError where the profile isn't known.
    """
    aws = tuple(sorted(pair for pair in os.environ.items() if pair[0].startswith("AWS_")))
    place = (os.getpid(), storage, aws)
    with _lock:
        if place not in _cache:
            if len(_cache) >= 16:
                _cache.clear()
            try:
                _cache[place] = Access(storage)
            except botocore.exceptions.ProfileNotFound as error:
                raise PermissionError(str(error)) from error
        return _cache[place]


def call(uri: str, fn: Callable[[], T]) -> T:
    """What `fn()` returns, with back-off; botocore's errors become Python's, naming `uri`.

    FileNotFoundError, PermissionError, ShardChanged for a failed precondition, else StorageError.
    """
    try:
        return with_backoff(uri, fn)
    except (botocore.exceptions.ClientError, botocore.exceptions.BotoCoreError) as error:
        raise translate(uri, error) from error


def translate(uri: str, error: Exception) -> Exception:
    """Python's own error for one of botocore's."""
    if not isinstance(error, botocore.exceptions.ClientError):
        names = ("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError")
        if type(error).__name__ in names:
            return PermissionError(f"{uri}: {error}")
        return StorageError(uri, f"{type(error).__name__}: {error}")
    code, status = code_of(error), status_of(error)
    said = error.response.get("Error", {}).get("Message") or "no more was said"
    if code == "NoSuchBucket":
        return MissingBucket(f"{uri}: the bucket does not exist")
    if status == 404:
        return FileNotFoundError(f"{uri}: does not exist")
    if status in (401, 403) or code in ("ExpiredToken", "InvalidToken", "InvalidAccessKeyId"):
        return PermissionError(f"{uri}: access refused ({code}: {said})")
    if status in (412, 416):
        return ShardChanged(uri, f"changed while it was read ({code})")
    return StorageError(uri, f"{code}: {said}")


def code_of(error: Exception) -> str:
    """The S3 error code of a ClientError."""
    return str(getattr(error, "response", {}).get("Error", {}).get("Code", ""))


def status_of(error: Exception) -> int:
    """The HTTP status of a ClientError."""
    found = getattr(error, "response", {}).get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return int(found)


def stat(at: Access, uri: str) -> Object:
    """The object at `uri`. FileNotFoundError and PermissionError say what is wrong."""
    bucket, key = split_s3(uri)
    try:
        head = call(uri, lambda: at.client.head_object(Bucket=bucket, Key=key))
    except (FileNotFoundError, PermissionError) as error:
        # A HEAD has no body, so no reason either: a listing of the bucket tells it.
        call(uri, lambda: at.client.list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1))
        raise error
    modified = head["LastModified"].timestamp()
    return Object(uri, head["ContentLength"], head.get("ETag", "").strip('"'), modified)


def walk(at: Access, uri: str, prefix: str, recursive: bool) -> Iterator[Object]:
    """The objects whose key begins with `prefix`, page by page, in the server's order."""
    bucket, _ = split_s3(uri)
    more: dict[str, str] = {} if recursive else {"Delimiter": "/"}
    while True:
        args = {"Bucket": bucket, "Prefix": prefix, **more}
        page = call(uri, lambda args=args: at.client.list_objects_v2(**args))  # type: ignore[misc]
        for item in page.get("Contents", ()):
            if item["Key"].endswith("/"):
                continue  # a marker that makes a folder visible
            etag, modified = item.get("ETag", "").strip('"'), item["LastModified"].timestamp()
            yield Object(f"s3://{bucket}/{item['Key']}", item["Size"], etag, modified)
        if not page.get("IsTruncated"):
            return
        more["ContinuationToken"] = page["NextContinuationToken"]


def read(at: Access, uri: str, start: int, stop: int | None, etag: str) -> tuple[bytes, str]:
    """Bytes `[start, stop)` and the etag; ShardChanged when `etag` is given and differs."""
    bucket, key = split_s3(uri)
    args: dict[str, str] = {"Bucket": bucket, "Key": key}
    if etag:
        args["IfMatch"] = f'"{etag}"'
    if start or stop is not None:
        if stop is not None and stop <= start:
            return b"", etag
        args["Range"] = f"bytes={start}-{'' if stop is None else stop - 1}"

    def get() -> tuple[bytes, str]:
        try:
            reply = at.client.get_object(**args)
        except botocore.exceptions.ClientError as error:
            if status_of(error) != 416:
                raise
            # Nothing lies at or after `start`: an empty object has no range at all.
            return b"", stat(at, uri).etag
        return reply["Body"].read(), reply.get("ETag", "").strip('"')

    data, found = call(uri, get)
    if etag and found and found != etag:  # a server that ignores If-Match
        raise ShardChanged(uri, f"changed while it was read: {etag} became {found}")
    if not etag and stop is not None and len(data) > stop - start:
        raise StorageError(uri, "the server ignores range requests")
    return data, found


def write(at: Access, uri: str, data: bytes) -> None:
    """Puts a whole object."""
    bucket, key = split_s3(uri)
    call(uri, lambda: at.client.put_object(Bucket=bucket, Key=key, Body=data))


def put_if_absent(at: Access, uri: str, data: bytes) -> bool:
    """Puts an object unless there is one; whether this call wrote it."""
    bucket, key = split_s3(uri)
    tries = 0

    def put() -> bool:
        nonlocal tries
        tries += 1
        try:
            at.client.put_object(Bucket=bucket, Key=key, Body=data, IfNoneMatch="*")
        except botocore.exceptions.ClientError as error:
            if status_of(error) != 412:
                raise
            tries += error.response.get("ResponseMetadata", {}).get("RetryAttempts", 0)
            return False
        return True

    if call(uri, put):
        return True
    # An attempt of ours may have landed though its reply was lost.
    return tries > 1 and read(at, uri, 0, None, "")[0] == data


def delete(at: Access, uri: str) -> None:
    """Removes an object; nothing happens where there is none."""
    bucket, key = split_s3(uri)
    call(uri, lambda: at.client.delete_object(Bucket=bucket, Key=key))


def ignores_conditions(error: Exception) -> bool:
    """Whether a server refused a conditional put because it knows none."""
    cause = error.__cause__
    return isinstance(cause, botocore.exceptions.ClientError) and not is_transient(cause)
