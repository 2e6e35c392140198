"""Uris as text: normal form, joining, brace ranges and globs. Touches no storage.

A uri is an absolute local path or `s3://bucket/key`; those two shapes are all that the rest sees.
"""

import os
import re
from urllib.parse import unquote

from mmray.errors import RefusedError

MAX_NAMES = 1_000_000

_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+)://")
_MAGIC = re.compile(r"[*?\[]")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def normalise(uri: str) -> str:
    """The one spelling of `uri`: an absolute path, or `s3://bucket/key` without a final slash.

    Raises RefusedError for any other protocol.
    """
    match = _SCHEME.match(uri)
    if match is None:
        return os.path.abspath(os.path.expanduser(uri))
    scheme, rest = match.group(1).lower(), uri[match.end() :]
    if scheme == "file":
        return os.path.abspath("/" + unquote(rest.removeprefix("localhost")).lstrip("/"))
    if scheme in ("s3", "s3a"):
        if not rest.strip("/"):
            raise RefusedError(f"{uri}: names no bucket")
        return "s3://" + rest.rstrip("/")
    raise RefusedError(f"{uri}: only local paths and s3:// are supported, not {scheme}://")


def is_s3(uri: str) -> bool:
    """Whether a normal uri is in object storage."""
    return uri.startswith("s3://")


def split_s3(uri: str) -> tuple[str, str]:
    """Bucket and key of `s3://bucket/key`; the key is empty for a bucket."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


def join(uri: str, *parts: str) -> str:
    """`uri` and `parts` with one slash between each."""
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])


def has_magic(uri: str) -> bool:
    """Whether `uri` holds a wildcard: `*`, `?` or `[`."""
    return _MAGIC.search(uri) is not None


def literal_folder(pattern: str) -> str:
    """The folder of `pattern` that holds all its matches, without a final slash."""
    match = _MAGIC.search(pattern)
    literal = pattern[: match.start()] if match else pattern
    return literal.rpartition("/")[0]


def glob_regex(pattern: str) -> re.Pattern[str]:
    """What matches `pattern`: `*` and `?` stay within a folder, `**` crosses folders."""
    out, i = "", 0
    while i < len(pattern):
        if pattern.startswith("**/", i) and (i == 0 or pattern[i - 1] == "/"):
            out, i = out + "(?:.*/)?", i + 3
        elif pattern.startswith("**", i):
            out, i = out + ".*", i + 2
        elif pattern[i] == "*":
            out, i = out + "[^/]*", i + 1
        elif pattern[i] == "?":
            out, i = out + "[^/]", i + 1
        elif pattern[i] == "[" and (end := pattern.find("]", i + 2)) > 0:
            chars = pattern[i + 1 : end].replace("\\", "\\\\").replace("[", "\\[")
            if chars[0] in "!^":
                chars = "^/" + chars[1:]
            out, i = out + f"(?!/)[{chars}]", end + 1
        else:
            out, i = out + re.escape(pattern[i]), i + 1
    try:
        return re.compile(out, re.DOTALL)
    except re.error as error:
        raise RefusedError(f"{pattern}: not a pattern: {error}") from error


def expand_braces(text: str) -> list[str]:
    """`a{00..11}.tar` and `{a,b}` written out, in order; other braces stand for themselves."""
    out: list[str] = []
    # A stack, not recursion by result: names come out in order, and their number is checked as
    # they come, so that {0..999999999} is refused instead of filling memory.
    todo = [("", text)]
    while todo:
        done, rest = todo.pop()
        found = _first_braces(rest)
        if found is None:
            out.append(done + rest)
            if len(out) > MAX_NAMES:
                raise RefusedError(f"{text}: stands for more than {MAX_NAMES:,} names")
            continue
        start, stop, choices = found
        if len(choices) + len(todo) > MAX_NAMES:
            raise RefusedError(f"{text}: stands for more than {MAX_NAMES:,} names")
        tail = rest[stop:]
        todo += [(done + rest[:start], choice + tail) for choice in reversed(choices)]
    return out


def _first_braces(text: str) -> tuple[int, int, list[str]] | None:
    """Start, stop and choices of the first braces that stand for something."""
    for start, char in enumerate(text):
        if char != "{":
            continue
        depth, commas = 0, [start]
        for i in range(start, len(text)):
            if text[i] == "{":
                depth += 1
            elif text[i] == "," and depth == 1:
                commas.append(i)
            elif text[i] == "}":
                depth -= 1
                if depth == 0:
                    choices = _choices(text, commas, i)
                    if choices is not None:
                        return start, i + 1, choices
                    break
    return None


def _choices(text: str, commas: list[int], end: int) -> list[str] | None:
    inner = text[commas[0] + 1 : end]
    match = _RANGE.fullmatch(inner)
    if match is not None:
        first, last = match.groups()
        padded = any(len(end) > 1 and end[0] == "0" for end in (first, last))
        width = max(len(first), len(last)) if padded else 0
        low, high = int(first), int(last)
        if abs(high - low) >= MAX_NAMES:
            raise RefusedError(f"{text}: stands for more than {MAX_NAMES:,} names")
        step = 1 if low <= high else -1
        return [f"{n:0{width}d}" for n in range(low, high + step, step)]
    if len(commas) == 1:
        return None
    return [text[a + 1 : b] for a, b in zip(commas, [*commas[1:], end], strict=True)]
