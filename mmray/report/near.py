"""What is near what: a section for each vector space, which shows what the model was given:
pictures, posters, sounds to play, or words.

Sounds are foreign bytes: they stand in `data:` addresses of an audio type and nothing else, and
only as many as the page has room for.
"""

import base64
import re
from collections.abc import Sequence

from mmray.report.vectors import SOUND_BYTES, Inspection, Item, Neighbours, Space
from mmray.report.words import escape, section

PAGE_SOUND_BYTES = 3 * 1024 * 1024
"""Of all sounds on a page, as they stand in it."""
OPEN, OPEN_LATER = 6, 3
"""Rows of the first space, and of each other, that are shown at once; the rest unfolds."""

_TITLES = {
    "image": "Nearest pictures",
    "audio": "Nearest sounds",
    "video": "Nearest videos",
    "text": "Nearest texts",
}
_SOUND_TYPE = re.compile(r"audio/[a-z0-9.+-]+")


class _Room:
    """Bytes that sounds may still take on the page."""

    def __init__(self, left: int) -> None:
        self._left = left

    def take(self, size: int) -> bool:
        if size > self._left:
            return False
        self._left -= size
        return True


def neighbours(vectors: Inspection) -> str:
    """The sections, one after the other; one that says so where nothing could be compared."""
    if not vectors.spaces:
        body = '<p class="note">There were too few vectors to compare.</p>'
        return section("Nearest neighbours", "", body)
    room = _Room(PAGE_SOUND_BYTES)
    first, *others = vectors.spaces
    shown = [_space(first, OPEN, room), *(_space(each, OPEN_LATER, room) for each in others)]
    return "\n".join(shown)


def _space(space: Space, open_rows: int, room: _Room) -> str:
    items = [item for row in space.neighbours for item in (row.query, *row.nearest)]
    look = _look(space.modality, items)
    rows = [_row(row, look, room) for row in space.neighbours]
    top, rest = "".join(rows[:open_rows]), "".join(rows[open_rows:])
    if rest:
        more = f"{len(rows) - open_rows} more"
        top += f'<details class="more"><summary>{more}</summary>{rest}</details>'
    name = escape(space.modality)
    title = _TITLES.get(space.modality, f"Nearest by {name}")
    return section(title, f"by cosine in the {name} space", f'<div class="{look}">{top}</div>')


def _look(modality: str, items: Sequence[Item]) -> str:
    """How the rows of a space look, as classes of the style sheet."""
    pictured = any(item.jpeg for item in items)
    if modality == "audio" and any(map(_playable, items)):
        return "sounds pictured" if pictured else "sounds"
    return "pictures" if pictured and modality != "text" else "texts"


def _row(row: Neighbours, look: str, room: _Room) -> str:
    query = _item(row.query, "query", look, room)
    nearest = "".join(_item(each, f"{each.similarity:.2f}", look, room) for each in row.nearest)
    return (
        f'<div class="near"><div class="query">{query}</div><div class="list">{nearest}</div></div>'
    )


def _item(item: Item, label: str, look: str, room: _Room) -> str:
    caption = escape(item.caption or item.source_key)
    words = (
        f'<div><span class="sim">{label}</span>'
        f'<span class="cap" title="{escape(item.source_key)}">{caption}</span></div>'
    )
    picture = "" if look in ("sounds", "texts") else _picture(item)
    sound = _sound(item, caption, room) if look.startswith("sounds") else ""
    return f'<div class="item">{picture}{words}{sound}</div>'


def _picture(item: Item) -> str:
    if not item.jpeg:
        return '<span class="pic none">no picture</span>'
    return f'<img class="pic" alt="" src="data:image/jpeg;base64,{_base64(item.jpeg)}">'


def _playable(item: Item) -> bool:
    fits = item.audio is not None and 0 < len(item.audio) <= SOUND_BYTES
    return fits and _SOUND_TYPE.fullmatch(item.mime) is not None


def _sound(item: Item, caption: str, room: _Room) -> str:
    data = _base64(item.audio or b"") if _playable(item) else ""
    if not data or not room.take(len(data)):
        return '<span class="mute">sound not kept</span>'
    return (
        f'<audio controls preload="none" aria-label="{caption}" '
        f'src="data:{item.mime};base64,{data}"></audio>'
    )


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
