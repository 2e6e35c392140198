"""The page of near-duplicates: each kept row beside those that it stands for, the largest groups
first. It shows some of them; the lists that the job wrote have all."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmray.report import charts
from mmray.report.document import Figure, document, report_header, report_title
from mmray.report.media import PAGE_PICTURE_BYTES, PAGE_SOUND_BYTES, Room
from mmray.report.near import item_of, look
from mmray.report.plain import aside, lost, measured, run_facts
from mmray.report.times import pair, stages
from mmray.report.vectors import Item
from mmray.report.words import duration, number, plural, section

if TYPE_CHECKING:
    from mmray.report import Report

OPEN = 12
"""Groups that are shown at once; the rest unfolds."""
MAX_GROUPS = 60
MAX_EACH = 12
"""Dropped rows of a group that are shown."""


@dataclass(frozen=True, slots=True)
class Group:
    """A row that is kept, and those that it stands for."""

    kept: Item
    dropped: tuple[Item, ...]
    """Their `similarity` is the one to the kept row."""


def groups_page(
    report: "Report", groups: Sequence[Group], histogram: Sequence[tuple[float, int]]
) -> str:
    """The page, complete and in UTF-8.

    Args:
        report: what the job did: rows compared, kept (written) and dropped (filtered); its metric
            `groups` is their number where it is larger than that of the groups given.
        groups: the largest groups; the page sorts them.
        histogram: lower end and number of pairs of each bin of scores, bins of one width.
    """
    chart = charts.histogram(histogram, "pairs")
    scores = section("Scores", "pairs by cosine", chart) if chart else ""
    timed = stages(report) if report.stages else ""
    sections = (
        pair(scores, timed) if scores and timed else scores + timed,
        _groups(groups, _count(report, groups)),
        measured(report, frozenset({"groups"})),
        # One reason says no more than the header.
        *(lost(report) if report.rows_quarantined or len(report.filtered) > 1 else ()),
        run_facts(report),
    )
    figures = _figures(report, _count(report, groups))
    return document(report_title(report), report_header(report, figures), sections)


def _count(report: "Report", groups: Sequence[Group]) -> int:
    told = report.metrics.get("groups", 0)
    return max(len(groups), told if isinstance(told, int) else 0)


def _figures(report: "Report", groups: int) -> list[Figure]:
    return [
        ("Rows kept", number(report.rows_written), False),
        ("Groups", number(groups), False),
        *aside(report),
        ("Time", duration(report.seconds), False),
    ]


def _groups(groups: Sequence[Group], count: int) -> str:
    title = "Near-duplicates"
    if not groups:
        words = "No two rows are that near to each other." if not count else "None is shown."
        return section(title, "", f'<p class="note">{words}</p>')
    largest = sorted(groups, key=lambda each: -len(each.dropped))[:MAX_GROUPS]
    # Sounds, else pictures, else words.
    items = [item for each in largest for item in (each.kept, *each.dropped[:MAX_EACH])]
    kind = look("audio", items)
    sounds, pictures = Room(PAGE_SOUND_BYTES), Room(PAGE_PICTURE_BYTES)
    rows = [_group(each, kind, sounds, pictures) for each in largest]
    body, rest = "".join(rows[:OPEN]), "".join(rows[OPEN:])
    if rest:
        more = plural(len(rows) - OPEN, "more group")
        body += f'<details class="more"><summary>{more}</summary>{rest}</details>'
    words = f"the largest {len(rows):,} of {plural(count, 'group')}"
    if len(rows) == count:
        words = plural(count, "group")
    return section(title, words, f'<div class="{kind}">{body}</div>')


def _group(group: Group, kind: str, sounds: Room, pictures: Room) -> str:
    kept = item_of(group.kept, "kept", kind, sounds, pictures)
    dropped = "".join(
        item_of(each, f"{each.similarity:.3f}", kind, sounds, pictures)
        for each in group.dropped[:MAX_EACH]
    )
    hidden = len(group.dropped) - MAX_EACH
    more = f'<p class="note rest">and {hidden:,} more dropped</p>' if hidden > 0 else ""
    return (
        f'<div class="near"><div class="query">{kept}</div>'
        f'<div><div class="list">{dropped}</div>{more}</div></div>'
    )
