"""Text bytes: strict UTF-8 or a named refusal."""

from __future__ import annotations

import pytest

from mmray.decode.text import decode_text
from mmray.errors import BadSample


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"a cat", "a cat"),
        (b"\xef\xbb\xbfa cat\r\n", "a cat"),
        ("Straße 猫 🐈".encode(), "Straße 猫 🐈"),
        (b" two\nlines ", "two\nlines"),
    ],
)
def test_good(data: bytes, text: str) -> None:
    assert decode_text(data, max_chars=100) == text


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", "EmptyText"),
        (b" \n\t", "EmptyText"),
        (b"\xef\xbb\xbf", "EmptyText"),
        (b"caf\xe9", "BadText"),
        (b"a\0b", "BadText"),
        (b"\xff\xfea\0", "BadText"),
        (b"a" * 11, "OversizedText"),
        (b"a" * 1000, "OversizedText"),
        ("猫".encode() * 11, "OversizedText"),
    ],
)
def test_refused(data: bytes, kind: str) -> None:
    with pytest.raises(BadSample) as caught:
        decode_text(data, max_chars=10)
    assert caught.value.error_type == kind


def test_the_limit_counts_characters() -> None:
    assert decode_text("猫".encode() * 10, max_chars=10) == "猫" * 10
