"""Text bytes to a string that a tokenizer can take: UTF-8 or a refusal, never a guess."""

from mmray.errors import BadSample

_BOM = b"\xef\xbb\xbf"


def decode_text(data: bytes, *, max_chars: int) -> str:
    """Decode strict UTF-8, without its byte-order mark and outer white space.

    Raises `BadSample`: `EmptyText`, `BadText` (not UTF-8, or a NUL inside) or `OversizedText`.
    """
    body = data.removeprefix(_BOM)
    # A character takes at most 4 bytes, so this refuses before anything is decoded.
    if len(body) > 4 * max_chars:
        raise BadSample("OversizedText", f"{len(body)} bytes, limits.characters={max_chars}")
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        found = body[error.start : error.start + 8]
        message = f"not UTF-8 at byte {error.start + len(data) - len(body)}: {found!r}"
        raise BadSample("BadText", message) from None
    if "\0" in text:
        raise BadSample("BadText", f"a NUL character at position {text.index(chr(0))}")
    if len(text) > max_chars:
        raise BadSample("OversizedText", f"{len(text)} characters, limits.characters={max_chars}")
    text = text.strip()
    if not text:
        raise BadSample("EmptyText", "the text has no characters")
    return text
