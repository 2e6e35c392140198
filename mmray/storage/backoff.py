"""Trying again: which errors pass by themselves, and waiting for them with growing pauses.

The default waits about 40 seconds altogether, long enough for a storage server to restart.
"""

import errno
import random
import time
from collections.abc import Callable
from typing import TypeVar

from mmray.errors import MmrayError, StorageError

T = TypeVar("T")

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 10.0

_LASTING_ERRNOS = frozenset(
    {
        errno.EACCES,
        errno.EDQUOT,
        errno.EEXIST,
        errno.EINVAL,
        errno.EISDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.ENOENT,
        errno.ENOSPC,
        errno.ENOTDIR,
        errno.ENOTEMPTY,
        errno.EPERM,
        errno.EROFS,
        errno.EXDEV,
    }
)
# By class as well, since an error raised in Python often has no errno.
_LASTING_CLASSES = (
    FileExistsError,
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)
_PASSING_STATUS = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
_PASSING_CODES = frozenset(
    {"InternalError", "RequestTimeout", "SlowDown", "ServiceUnavailable", "Throttling"}
)
# Matched by name so that a job on local files doesn't import botocore and aiohttp.
_PASSING_CLASSES = frozenset(
    {
        "ChecksumError",
        "ClientPayloadError",
        "ClientConnectionError",
        "ConnectionError",
        "FlexibleChecksumError",
        "HTTPClientError",
        "HTTPError",
        "IncompleteReadError",
        "MetadataRetrievalError",
        "ResponseParserError",
        "ResponseStreamingError",
    }
)
# pyarrow and deltalake put what the server said into the text of a general error.
_LASTING_WORDS = (
    "access_denied",
    "accessdenied",
    "forbidden",
    "invalidaccesskeyid",
    "necessary privileges",
    "no_such_bucket",
    "nosuchbucket",
    "signaturedoesnotmatch",
    "http status 403",
    "http status 404",
    "status code: 403",
    "status code: 404",
    " 403 ",
    " 404 ",
)
_PASSING_WORDS = (
    "error sending request",
    "connection",
    "timed out",
    "timeout",
    "slow down",
    "slowdown",
    "500 internal",
    "502 bad",
    "503 service",
    "504 gateway",
)


def is_transient(error: BaseException) -> bool:
    """Whether the same call may succeed later: timeouts, broken connections, 5xx, throttling."""
    if isinstance(error, (MmrayError, *_LASTING_CLASSES)) or type(error).__name__ == "FileExpired":
        return False
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return status in _PASSING_STATUS or response.get("Error", {}).get("Code") in _PASSING_CODES
    if any(cls.__name__ in _PASSING_CLASSES for cls in type(error).__mro__):
        return True
    if isinstance(error, OSError):
        text = str(error).lower()
        return error.errno not in _LASTING_ERRNOS and not any(w in text for w in _LASTING_WORDS)
    if type(error).__module__.startswith(("deltalake", "_internal")):
        text = str(error).lower()
        return any(w in text for w in _PASSING_WORDS) and not any(w in text for w in _LASTING_WORDS)
    return False


def with_backoff(what: str, fn: Callable[[], T], *, attempts: int = 8) -> T:
    """What `fn()` returns; calls it again while its error may pass.

    `what` is the uri that it works on. Raises StorageError naming it after the last attempt, and
    lets an error that lasts (a missing object, refused credentials) through at once.
    """
    for attempt in range(attempts):
        try:
            return fn()
        except Exception as error:
            if not is_transient(error):
                raise
            if attempt == attempts - 1:
                words = f"still failing after {attempts} attempts: {_words(error)}"
                raise StorageError(what, words) from error
        # Jitter keeps many workers from coming back to a restarted server all at once.
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2**attempt)
        time.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311
    raise ValueError("attempts must be positive")


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:400]
