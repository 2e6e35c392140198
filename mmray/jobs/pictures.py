"""Groups of near-duplicates as the report shows them: the largest, with pictures of some rows."""

import numpy as np

from mmray.errors import StorageError
from mmray.index.batch.duplicates import Groups
from mmray.index.searching.opened import Index
from mmray.report.groups import MAX_EACH, OPEN, Group
from mmray.report.progress import Progress
from mmray.report.vectors import Item


def shown(index: Index, groups: Groups, show: Progress) -> list[Group]:
    """The largest groups: a few, for each picture may be in a part of its own. Where storage stays
    broken they have none, which is said."""
    largest = groups.largest(OPEN)
    places = [
        place for keeper, dropped in largest for place in (keeper, *dropped[:MAX_EACH].tolist())
    ]
    if not places:
        return []
    numbers = groups.rows[np.array(places)]
    columns = ["id", "source_key", *(["caption"] if "caption" in index.columns else [])]
    rows = dict(zip(places, index.table(numbers, columns).to_pylist(), strict=True))
    pictures: dict[str, bytes] = {}
    try:
        pictures = index.thumbnails([row["id"] for row in rows.values()])
    except StorageError as error:
        show.say(f"the report has no pictures: {error}")

    def item(place: int, score: float = 1.0) -> Item:
        row = rows[place]
        words = row.get("caption") or ""
        return Item(row["id"], row["source_key"], str(words), pictures.get(row["id"]), score)

    found = []
    for keeper, dropped in largest:
        seen = [item(place, float(groups.scores[place])) for place in dropped[:MAX_EACH].tolist()]
        # The page counts those that it doesn't show.
        more = (Item("", ""),) * (len(dropped) - len(seen))
        found.append(Group(item(keeper), (*seen, *more)))
    return found
