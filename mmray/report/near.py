"""What is near what: a section for each vector space, which shows what the model was given:
pictures, posters, sounds to play, or words."""

from collections.abc import Sequence

from mmray.report.media import PAGE_SOUND_BYTES, Room, picture, playable, sound
from mmray.report.vectors import Inspection, Item, Neighbours, Space
from mmray.report.words import escape, section

OPEN, OPEN_LATER = 6, 3
"""Rows of the first space, and of each other, that are shown at once; the rest unfolds."""

_TITLES = {
    "image": "Nearest pictures",
    "audio": "Nearest sounds",
    "video": "Nearest videos",
    "text": "Nearest texts",
}


def neighbours(vectors: Inspection) -> str:
    """The sections, one after the other; one that says so where nothing could be compared."""
    if not vectors.spaces:
        body = '<p class="note">There were too few vectors to compare.</p>'
        return section("Nearest neighbours", "", body)
    room = Room(PAGE_SOUND_BYTES)
    first, *others = vectors.spaces
    shown = [_space(first, OPEN, room), *(_space(each, OPEN_LATER, room) for each in others)]
    return "\n".join(shown)


def look(modality: str, items: Sequence[Item]) -> str:
    """How rows of items look, as classes of the style sheet: `pictures`, `sounds`, `texts`."""
    pictured = any(item.jpeg for item in items)
    if modality == "audio" and any(map(playable, items)):
        return "sounds pictured" if pictured else "sounds"
    return "pictures" if pictured and modality != "text" else "texts"


def item_of(item: Item, label: str, kind: str, sounds: Room, pictures: Room | None = None) -> str:
    """One item of a row.

    Args:
        item: what is shown.
        label: what stands above its caption, such as its similarity.
        kind: the look of its row, from `look`.
        sounds: what sounds may still take on the page.
        pictures: what pictures may still take; left out: all they want.
    """
    caption = escape(item.caption or item.source_key)
    words = (
        f'<div><span class="sim">{label}</span>'
        f'<span class="cap" title="{escape(item.source_key)}">{caption}</span></div>'
    )
    seen = "" if kind in ("sounds", "texts") else picture(item.jpeg, pictures)
    heard = sound(item, sounds) if kind.startswith("sounds") else ""
    return f'<div class="item">{seen}{words}{heard}</div>'


def _space(space: Space, open_rows: int, room: Room) -> str:
    items = [item for row in space.neighbours for item in (row.query, *row.nearest)]
    kind = look(space.modality, items)
    rows = [_row(row, kind, room) for row in space.neighbours]
    top, rest = "".join(rows[:open_rows]), "".join(rows[open_rows:])
    if rest:
        more = f"{len(rows) - open_rows} more"
        top += f'<details class="more"><summary>{more}</summary>{rest}</details>'
    name = escape(space.modality)
    title = _TITLES.get(space.modality, f"Nearest by {name}")
    return section(title, f"by cosine in the {name} space", f'<div class="{kind}">{top}</div>')


def _row(row: Neighbours, kind: str, room: Room) -> str:
    query = item_of(row.query, "query", kind, room)
    nearest = "".join(item_of(each, f"{each.similarity:.2f}", kind, room) for each in row.nearest)
    return (
        f'<div class="near"><div class="query">{query}</div><div class="list">{nearest}</div></div>'
    )
