"""Numbers, foreign text and the frame of a section, as the page shows them."""

import html
from datetime import UTC, datetime


def escape(text: object) -> str:
    """Any text, safe in HTML content and in quoted attributes."""
    # Half a surrogate pair can't be written as UTF-8, and a NUL is no character of HTML.
    valid = str(text).encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")
    return html.escape(valid, quote=True)


def number(value: float) -> str:
    """`12,345`; small ones keep what tells them apart: `2.5`, `0.25`."""
    if float(value).is_integer() or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2g}"


def rate(rows_per_second: float) -> str:
    """`312 rows/s`."""
    return f"{number(rows_per_second)} rows/s"


def duration(seconds: float) -> str:
    """`0.4 s`, `5 s`, `41 s`, `3 min 7 s`, `2 h 3 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f}".removesuffix(".0") + " s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        minutes, rest = divmod(whole, 60)
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours:,} h {minutes} min" if minutes else f"{hours:,} h"


def moment(iso: str) -> str:
    """`21 November 2025, 14:03 UTC`; other text stays as it is."""
    try:
        when = datetime.fromisoformat(iso)
    except ValueError:
        return iso
    when = when.astimezone(UTC) if when.tzinfo else when
    return f"{when.day} {when:%B %Y, %H:%M} UTC"


def size(count: float) -> str:
    """`512 bytes`, `1.5 MiB`, `12 GiB`."""
    if count < 1024:
        return f"{count:,.0f} bytes"
    units = ("KiB", "MiB", "GiB", "TiB")
    for unit in units:
        count /= 1024
        if count < 1000 or unit == units[-1]:
            break
    return f"{number(round(count, 1))} {unit}"


def plural(count: int, one: str, many: str = "") -> str:
    """`1 row`, `2 rows`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def percent(share: float) -> str:
    """`12%`; small shares keep two digits: `1.3%`, `0.025%`."""
    return f"{share:.0%}" if share >= 0.1 else f"{100 * share:.2g}%"


def section(title: str, words: str, body: str) -> str:
    """A section; all three are HTML already, `words` stand beside the title."""
    aside = f'<span class="soft">{words}</span>' if words else ""
    return f'<section><div class="head"><h2>{title}</h2>{aside}</div>{body}</section>'
