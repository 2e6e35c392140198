"""The report as one HTML page that needs nothing else: no script, no font, no address.

Captions, keys and error messages are foreign text: each goes through `escape`, and the page's own
policy (CSP) lets a browser load nothing but the pictures and sounds that are in it.
"""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from mmray.report import charts
from mmray.report.near import neighbours
from mmray.report.reasons import bad_samples, left_out
from mmray.report.vectors import Inspection, VectorCheck
from mmray.report.words import duration, escape, moment, number, plural, section

if TYPE_CHECKING:
    from mmray.report import Report

POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"


def render(report: "Report", vectors: Inspection | None = None) -> str:
    """The page, complete and in UTF-8.

    Args:
        report: what the run did.
        vectors: what was found in the store; left out, its sections say so.
    """
    title = f"{report.job} · {_name(report)}"
    sections = (
        _time(report),
        _checks(vectors or Inspection()),
        neighbours(vectors or Inspection()),
        bad_samples(report),
        left_out(report),
        _shards(report),
        _facts(report),
    )
    body = "\n".join(filter(None, sections))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="referrer" content="no-referrer">'
        f"<title>{escape(title)}</title><style>{_style()}</style></head>\n"
        f"<body><main>{_header(report)}\n{body}\n</main></body></html>\n"
    )


@cache
def _style() -> str:
    return Path(__file__).with_name("page.css").read_text(encoding="utf-8")


def _name(report: "Report") -> str:
    """The last part of the store's uri, by which people call it."""
    return str(report.outputs.get("store", "")).rstrip("/").rpartition("/")[2] or report.run_id


def _header(report: "Report") -> str:
    good = report.status == "done"
    callout = "" if good or not report.message else _callout(report.message)
    return (
        '<header><p class="eyebrow">'
        f"<b>mmray</b><span>{escape(report.job)} report</span>"
        f'<span class="status{"" if good else " bad"}">{escape(report.status)}</span></p>'
        f'<h1>{escape(_name(report))}</h1><p class="lead">{_lead(report)}</p>{callout}'
        f"{_figures(report)}</header>"
    )


def _lead(report: "Report") -> str:
    when = escape(moment(report.started))
    if not report.rows_read:
        if report.status == "done" and report.rows_skipped:
            return f"Nothing to do: every sample was finished by an earlier run. {when}."
        return f"No sample was read. {when}."
    parts = [f"{report.rows_written:,} written"]
    parts += [f"{report.rows_filtered:,} left out"] if report.rows_filtered else []
    parts += [f"{report.rows_quarantined:,} in quarantine"] if report.rows_quarantined else []
    kept = f"{', '.join(parts[:-1])} and {parts[-1]}" if parts[1:] else "all of them written"
    return (
        f"{plural(report.rows_read, 'sample')} read in {duration(report.seconds)}, {kept}. {when}."
    )


def _figures(report: "Report") -> str:
    figures = [
        ("Rows written", number(report.rows_written), False),
        ("Rows per second", number(report.rows_per_second), False),
        ("Time", duration(report.seconds), False),
        ("In quarantine", number(report.rows_quarantined), report.rows_quarantined > 0),
        ("Finished before", number(report.rows_skipped), False),
    ]
    if report.rows_filtered:
        figures.insert(-1, ("Left out", number(report.rows_filtered), False))
    cells = "".join(
        f'<div class="{"bad" if bad else "good"}"><dt>{name}</dt><dd>{value}</dd></div>'
        for name, value, bad in figures
    )
    return f'<dl class="figures">{cells}</dl>'


def _time(report: "Report") -> str:
    chart = charts.throughput(report.timeline)
    if not chart:
        chart = '<p class="note">No rows were committed, so there is no curve.</p>'
    total = sum(report.stages.values())
    if total > 0:
        words = {
            name: f"{duration(seconds)} · {seconds / total:.0%}"
            for name, seconds in report.stages.items()
        }
        stages = charts.bars(report.stages, report.bottleneck, words)
    else:
        stages = '<p class="note">No stage ran.</p>'
    slow = f"{escape(report.bottleneck)} is the bottleneck" if report.bottleneck else ""
    start = ", ".join(f"{escape(k)} {duration(v)}" for k, v in report.startup.items())
    start = f'<p class="note">Start-up: {start}.</p>' if start else ""
    return (
        '<div class="pair">'
        + section("Throughput", "rows per second between commits", chart)
        + section("Stage seconds", slow or "summed over workers", stages + start)
        + "</div>"
    )


def _checks(vectors: Inspection) -> str:
    if not vectors.checks:
        return section("Vectors", "", '<p class="note">No vectors were looked at.</p>')
    looked = f"{vectors.rows:,} of {plural(vectors.of, 'row')}"
    note = (
        '<p class="note under">Mean cosine is that of random pairs: near 1, all vectors point the '
        "same way. Effective directions say over how many dimensions they spread.</p>"
    )
    return section("Vectors", looked, "".join(map(_check, vectors.checks)) + note)


def _check(check: VectorCheck) -> str:
    low, high = (
        f"{norm:.3f}" if norm < 1000 else f"{norm:.3g}" for norm in (check.norm_min, check.norm_max)
    )
    facts = (
        ("rows", number(check.rows)),
        ("nulls", number(check.nulls)),
        ("dimensions", number(check.dim)),
        ("length", low if low == high else f"{low} to {high}"),
        ("mean cosine", f"{check.mean_cosine:.3f}"),
        ("effective directions", number(round(check.spread, 1))),
    )
    cells = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts)
    warnings = "".join(map(_callout, check.warnings))
    name = escape(check.modality)
    return (
        f'<div class="check"><div class="row"><h3>{name}</h3><dl>{cells}</dl></div>{warnings}</div>'
    )


def _shards(report: "Report") -> str:
    total = report.shards.get("total", 0)
    facts = [f"{report.shards.get('finished', 0):,} finished"]
    body = ""
    for name, uris in (("changed", report.changed), ("removed", report.removed)):
        count = max(report.shards.get(name, 0), len(uris))
        if not count:
            continue
        facts.append(f"{count:,} {name}")
        names = "".join(f'<li class="mono">{escape(uri)}</li>' for uri in uris)
        more = "" if count <= len(uris) else f" (first {len(uris):,})"
        body += (
            f"<details{' open' if len(uris) <= 10 else ''}><summary>{count:,} {name}{more}"
            f"</summary><ul>{names}</ul></details>"
        )
    body = body or '<p class="note">None changed and none was removed since the last run.</p>'
    return section("Shards", f"{total:,} in the source, {', '.join(facts)}", body)


def _facts(report: "Report") -> str:
    encoder, outputs = report.encoder, report.outputs
    dims = encoder.get("dims") or {}
    facts = [
        ("Encoder", escape(encoder.get("name", ""))),
        ("Fingerprint", _code(encoder.get("fingerprint", ""))),
        ("Dimensions", escape(", ".join(f"{name} {dim}" for name, dim in dims.items()))),
        ("Store", _code(outputs.get("store", ""))),
        ("Version", escape(outputs.get("version", ""))),
        ("Rows encoded", f"{report.rows_encoded:,}"),
        ("Started", escape(moment(report.started))),
        ("Run", _code(report.run_id)),
    ]
    rows = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts if value)
    return section("Run", "", f'<dl class="facts">{rows}</dl>')


def _code(text: object) -> str:
    return f"<code>{escape(text)}</code>" if str(text) else ""


def _callout(text: str) -> str:
    return f'<p class="callout">{escape(text)}</p>'
