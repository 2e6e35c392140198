"""Text that came from elsewhere, made fit to keep: no credentials (an error of a storage client may
quote them), and nothing that UTF-8 can't hold (a file's name may be any bytes)."""

import os
import re
from typing import Any

SECRET_VARIABLES = (
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "HF_TOKEN",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "RAY_AUTH_TOKEN",
    "WANDB_API_KEY",
)

_PATTERNS = (
    # signed urls
    (
        re.compile(r"((?:X-Amz-(?:Signature|Credential|Security-Token)|Signature)=)[^&\s\"']+"),
        r"\1***",
    ),
    # user:password@host
    (re.compile(r"(\w://)[^/\s:@]+:[^/\s@]+@"), r"\1***@"),
    # secret_access_key = ..., "session_token": "..."
    (
        re.compile(
            r"((?:secret(?:_access)?_?key|session_?token|password|authorization)"
            r"[\"']?\s*[=:]\s*[\"']?)[^\s\"',;&}]+",
            re.IGNORECASE,
        ),
        r"\1***",
    ),
)


def scrub(text: str) -> str:
    """`text` with what looks like a credential, and the environment's own, replaced by `***`."""
    for name in SECRET_VARIABLES:
        # A value of a few letters ("test") would blank ordinary words.
        if len(value := os.environ.get(name, "")) >= 8:
            text = text.replace(value, "***")
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def printable(value: Any) -> Any:
    """`value` with half surrogate pairs in its text replaced by `?`, in lists and dicts too."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {printable(name): printable(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(printable(each) for each in value)
    return value
