"""The page of a search: the query at its top, then what the index answers, best first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mmray.report.charts import bar
from mmray.report.document import document, facts, masthead, status, value
from mmray.report.media import PAGE_PICTURE_BYTES, Room, picture
from mmray.report.wording import label
from mmray.report.words import escape, number, plural, section

FACTS = 3
"""Facts of a hit that are shown at once; the rest unfolds."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A row as the page shows it; all text is plain."""

    id: str
    score: float | None = None
    """None for a part of the query."""
    caption: str = ""
    facts: dict[str, str] = field(default_factory=dict)
    """Names and values, such as those of kept columns."""
    jpeg: bytes | None = None


def hits_page(
    title: str,
    query: Sequence[Shown],
    words: str,
    hits: Sequence[Shown],
    about: Mapping[str, str],
) -> str:
    """The page, complete and in UTF-8.

    Args:
        title: what was searched, such as the name of the index.
        query: pictures and rows that the query is made of, if any.
        words: the words that the query is made of, or that describe it; may be empty.
        hits: the answers, best first.
        about: names and values about the index and the search.
    """
    room = Room(PAGE_PICTURE_BYTES)
    said = f'<p class="lead">in {escape(title)}</p>' if words else ""
    top = masthead(
        "search", status(plural(len(hits), "hit")), words or title, said + _asked(query, room)
    )
    sections = (
        _hits(hits, room),
        facts("About", ((label(name), value(told)) for name, told in about.items())),
    )
    return document(f"{words or 'search'} · {title}", top, sections)


def _asked(query: Sequence[Shown], room: Room) -> str:
    if not query:
        return ""
    pictured = any(each.jpeg for each in query)
    cards = "".join(
        f'<div class="item">{picture(each.jpeg, room) if pictured else ""}'
        f"{_caption(each)}{_facts(each.facts)}</div>"
        for each in query
    )
    return f'<div class="asked{"" if pictured else " lines"}">{cards}</div>'


def _hits(hits: Sequence[Shown], room: Room) -> str:
    if not hits:
        return section("Hits", "", '<p class="note">Nothing in the index answers this query.</p>')
    pictured = any(each.jpeg for each in hits)
    best = max((each.score for each in hits if each.score is not None), default=0.0)
    cards = []
    for rank, each in enumerate(hits, 1):
        seen = picture(each.jpeg, room) if pictured else ""
        cards.append(
            f'<li class="item">{seen}{_score(rank, each.score, best)}'
            f"<div>{_caption(each)}{_facts(each.facts)}</div></li>"
        )
    look = "hits" if pictured else "hits lines"
    return section(
        "Hits", "best first, bars against the best", f'<ol class="{look}">{"".join(cards)}</ol>'
    )


def _score(rank: int, score: float | None, best: float) -> str:
    told = "" if score is None else f"{score:.3f}" if abs(score) < 100 else number(score)
    share = score / best if score is not None and best > 0 else 0.0
    return (
        f'<div class="score"><span class="rank">{rank}</span>{bar(min(max(share, 0.0), 1.0))}'
        f'<span class="sim">{told}</span></div>'
    )


def _caption(shown: Shown) -> str:
    """The caption with the id below it, or the id alone."""
    name = escape(shown.id)
    said = f'<p class="cap">{escape(shown.caption)}</p>' if shown.caption else ""
    return f'{said}<p class="id mono" title="{name}">{name}</p>'


def _facts(values: Mapping[str, str]) -> str:
    rows = [
        f"<div><dt>{escape(name)}</dt><dd>{escape(told)}</dd></div>"
        for name, told in values.items()
        if told
    ]
    if not rows:
        return ""
    body = f"<dl>{''.join(rows[:FACTS])}</dl>"
    if len(rows) > FACTS:
        more = f"{len(rows) - FACTS} more"
        body += f"<details><summary>{more}</summary><dl>{''.join(rows[FACTS:])}</dl></details>"
    return body
