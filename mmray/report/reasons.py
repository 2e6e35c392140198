"""Samples that are not in the store, by reason: the bad ones, with examples and the way to try them
again, and those that filters and duplicates left out."""

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mmray.report.charts import bar, bars
from mmray.report.words import escape, percent, plural, section

if TYPE_CHECKING:
    from mmray.report import Example, Report

OPEN = 12
"""Reasons that are shown at once; the rest unfolds."""


def bad_samples(report: "Report") -> str:
    """The quarantine: each reason with its count, its share of all, its stage and examples."""
    title = "Bad samples by reason"
    if not report.rows_quarantined:
        return section(title, "", '<p class="note">No sample was put aside.</p>')
    names = list(_by_count(report.errors))
    rows = [_reason(report, name, first=name == names[0]) for name in names]
    body, rest = "".join(rows[:OPEN]), "".join(rows[OPEN:])
    if rest:
        more = plural(len(rows) - OPEN, "more reason")
        body += f'<details class="more"><summary>{more}</summary>{rest}</details>'
    share = report.rows_quarantined / report.rows_read
    words = f"{plural(report.rows_quarantined, 'sample')}, {percent(share)} of those read"
    return section(title, words, f'<div class="reasons">{body}</div>{_again(report)}')


def left_out(report: "Report") -> str:
    """What filters and duplicates left out, by reason; empty where they left out nothing."""
    if not report.rows_filtered:
        return ""
    counts = _by_count(report.filtered)
    words = {
        name: f"{count:,} · {percent(count / report.rows_filtered)}"
        for name, count in counts.items()
    }
    share = percent(report.rows_filtered / report.rows_read)
    aside = f"{plural(report.rows_filtered, 'sample')}, {share} of those read, not in the store"
    return section("Left out", aside, f'<div class="wide">{bars(counts, None, words)}</div>')


def _by_count(counts: dict[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda each: (-each[1], each[0])))


def _reason(report: "Report", name: str, *, first: bool) -> str:
    count, most = report.errors[name], max(report.errors.values())
    examples = [each for each in report.examples if each.error_type == name]
    stages = dict.fromkeys(_gerund(each.stage) for each in examples)
    stage = f"while {' or '.join(stages)}" if stages else ""
    words = f"{count:,} · {percent(count / report.rows_quarantined)}"
    return (
        f'<div class="reason"><div class="row"><h3>{escape(name)}</h3>'
        f'<span class="soft">{stage}</span>{bar(count / max(most, 1))}'
        f'<span class="value">{words}</span></div>{_table(examples, first)}</div>'
    )


def _table(examples: Sequence["Example"], opened: bool) -> str:
    if not examples:
        return ""
    rows = "".join(map(_example, examples))
    return (
        f"<details{' open' if opened else ''}>"
        f"<summary>{plural(len(examples), 'example')}</summary>"
        "<table><thead><tr><th>Sample</th><th>What happened</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></details>"
    )


def _example(example: "Example") -> str:
    return (
        f'<tr><td class="where"><span class="mono">{escape(example.source_key)}</span>'
        f'<div class="soft">{escape(example.source_uri)}</div></td>'
        f"<td>{escape(example.message)}</td></tr>"
    )


def _gerund(stage: str) -> str:
    known = {"read": "reading", "decode": "decoding", "encode": "encoding"}
    return known.get(stage) or escape(stage)


def _again(report: "Report") -> str:
    store = report.outputs.get("store")
    uri = escape(shlex.quote(str(store))) if store else "URI"
    return (
        f'<p class="note under"><code>mmray store quarantine {uri}</code> lists all of them. Once '
        f"the cause is mended, <code>mmray store replay {uri} SPEC</code> tries them again.</p>"
    )
