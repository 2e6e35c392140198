"""Pictures and sounds as a page holds them: foreign bytes, in `data:` addresses of a picture or an
audio type and nothing else, and only as many as the page has room for."""

import base64
import re

from mmray.report.vectors import SOUND_BYTES, Item
from mmray.report.words import escape

PAGE_SOUND_BYTES = 3 * 1024 * 1024
"""Of all sounds on a page, as they stand in it."""
PAGE_PICTURE_BYTES = 12 * 1024 * 1024
"""Of all pictures on a page whose job did not choose and shrink them itself."""

_SOUND_TYPE = re.compile(r"audio/[a-z0-9.+-]+")


class Room:
    """Bytes that pictures or sounds may still take on the page."""

    def __init__(self, left: int) -> None:
        self._left = left

    def take(self, size: int) -> bool:
        """Whether there was room for so many bytes; they are taken then."""
        if size > self._left:
            return False
        self._left -= size
        return True


def picture(jpeg: bytes | None, room: Room | None = None) -> str:
    """A square with the picture in it, or with words where there is none.

    Args:
        jpeg: the picture, as a JPEG file.
        room: what pictures may still take; left out: all they want.
    """
    if not jpeg:
        return '<span class="pic none">no picture</span>'
    data = _base64(jpeg)
    if room is not None and not room.take(len(data)):
        return '<span class="pic none">not kept</span>'
    return f'<img class="pic" alt="" src="data:image/jpeg;base64,{data}">'


def playable(item: Item) -> bool:
    """Whether the item has a sound that a page may hold."""
    fits = item.audio is not None and 0 < len(item.audio) <= SOUND_BYTES
    return fits and _SOUND_TYPE.fullmatch(item.mime) is not None


def sound(item: Item, room: Room) -> str:
    """A player, or words where there's no sound or no room for it."""
    data = _base64(item.audio or b"") if playable(item) else ""
    if not data or not room.take(len(data)):
        return '<span class="mute">sound not kept</span>'
    return (
        f'<audio controls preload="none" aria-label="{escape(item.caption or item.source_key)}" '
        f'src="data:{item.mime};base64,{data}"></audio>'
    )


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
