"""The page of a run that filled a store: an embed job, or a replay of its quarantine."""

from typing import TYPE_CHECKING

from mmray.report.checks import checks
from mmray.report.document import Figure, code, document, facts, report_header, report_title
from mmray.report.near import neighbours
from mmray.report.reasons import bad_samples, left_out
from mmray.report.times import pair, stages, throughput
from mmray.report.vectors import Inspection
from mmray.report.words import duration, escape, moment, number, section

if TYPE_CHECKING:
    from mmray.report import Report


def render(report: "Report", vectors: Inspection | None = None) -> str:
    """The page, complete and in UTF-8.

    Args:
        report: what the run did.
        vectors: what was found in the store; left out, its sections say so.
    """
    sections = (
        pair(throughput(report), stages(report)),
        checks(vectors or Inspection()),
        neighbours(vectors or Inspection()),
        bad_samples(report),
        left_out(report),
        _shards(report),
        _facts(report),
    )
    return document(report_title(report), report_header(report, _figures(report)), sections)


def _figures(report: "Report") -> list[Figure]:
    figures = [
        ("Rows written", number(report.rows_written), False),
        ("Rows per second", number(report.rows_per_second), False),
        ("Time", duration(report.seconds), False),
        ("In quarantine", number(report.rows_quarantined), report.rows_quarantined > 0),
        ("Finished before", number(report.rows_skipped), False),
    ]
    if report.rows_filtered:
        figures.insert(-1, ("Left out", number(report.rows_filtered), False))
    return figures


def _shards(report: "Report") -> str:
    total = report.shards.get("total", 0)
    told = [f"{report.shards.get('finished', 0):,} finished"]
    body = ""
    for name, uris in (("changed", report.changed), ("removed", report.removed)):
        count = max(report.shards.get(name, 0), len(uris))
        if not count:
            continue
        told.append(f"{count:,} {name}")
        names = "".join(f'<li class="mono">{escape(uri)}</li>' for uri in uris)
        more = "" if count <= len(uris) else f" (first {len(uris):,})"
        body += (
            f"<details{' open' if len(uris) <= 10 else ''}><summary>{count:,} {name}{more}"
            f"</summary><ul>{names}</ul></details>"
        )
    body = body or '<p class="note">None changed and none was removed since the last run.</p>'
    return section("Shards", f"{total:,} in the source, {', '.join(told)}", body)


def _facts(report: "Report") -> str:
    encoder, outputs = report.encoder, report.outputs
    dims = encoder.get("dims") or {}
    rows = (
        ("Encoder", escape(encoder.get("name", ""))),
        ("Fingerprint", code(encoder.get("fingerprint", ""))),
        ("Dimensions", escape(", ".join(f"{name} {dim}" for name, dim in dims.items()))),
        ("Store", code(outputs.get("store", ""))),
        ("Version", escape(outputs.get("version", ""))),
        ("Rows encoded", f"{report.rows_encoded:,}"),
        ("Started", escape(moment(report.started))),
        ("Run", code(report.run_id)),
    )
    return facts("Run", rows)
