"""The value that listings give, and the one error that S3 has and files have not."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Object:
    """One object of a listing: size in bytes, mtime in seconds since 1970; the etag is unquoted."""

    uri: str
    size: int
    etag: str
    mtime: float


class MissingBucket(FileNotFoundError):
    """There is no such bucket, so nothing in it can be asked for."""
