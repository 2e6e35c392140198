"""Samples that are not in the store, by reason: the bad ones, with examples and the way to try them
again, and those that filters and duplicates left out."""

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mmray.report.charts import bar, bars
from mmray.report.wording import fills_store, wording
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
    words = _share(report, report.rows_quarantined)
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
    aside = _share(report, report.rows_filtered)
    aside += ", not in the store" if fills_store(report) else ""
    title = wording(report.job).filtered.capitalize()
    return section(title, aside, f'<div class="wide">{bars(counts, None, words)}</div>')


def _share(report: "Report", count: int) -> str:
    """`13 samples, 1.3% of those read`."""
    words = wording(report.job)
    share = percent(count / report.rows_read)
    return f"{plural(count, words.one, words.many)}, {share} of those {words.read}"


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
    if not fills_store(report):
        return ""
    uri = escape(shlex.quote(str(report.outputs["store"])))
    return (
        f'<p class="note under"><code>mmray store quarantine {uri}</code> lists all of them. Once '
        f"the cause is mended, <code>mmray store replay {uri} SPEC</code> tries them again.</p>"
    )
