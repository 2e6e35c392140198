"""The page of a training: how its loss fell, and how good it is on what was held out."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mmray.report import curves
from mmray.report.document import Figure, document, facts, report_header, report_title, value
from mmray.report.plain import aside, lost, measured, run_facts
from mmray.report.times import pair, stages
from mmray.report.wording import label, metric
from mmray.report.words import duration, escape, number, section

if TYPE_CHECKING:
    from mmray.report import Report

TOP = ("val/retrieval_r1", "val/retrieval_r10", "val/mrr", "val/accuracy", "val/loss")
"""Metrics that are figures of the header, the first three of them that there are."""
FIGURES = 3
WHEN = ("epoch", "step")


def train_page(
    report: "Report",
    losses: Sequence[float],
    epochs: Sequence[Mapping[str, float]],
    about: Mapping[str, str],
) -> str:
    """The page, complete and in UTF-8.

    Args:
        report: what the run did.
        losses: of each step of the whole training, from the first.
        epochs: what was measured after each epoch; `step` says when.
        about: names and values about the model, plain text.
    """
    charted = [_loss(losses), *(_metric(name, epochs) for name in _charted(epochs))]
    charts = [each for each in charted if each]
    rows = [charts[place : place + 2] for place in range(0, len(charts), 2)]
    sections = (
        *(pair(*row) if len(row) == 2 else row[0] for row in rows),
        _table(epochs),
        facts("Model", ((name, value(each)) for name, each in about.items())),
        stages(report) if report.stages else "",
        measured(report, frozenset(name for name in report.metrics if name.startswith("val/"))),
        *lost(report),
        run_facts(report),
    )
    return document(report_title(report), report_header(report, _figures(report)), sections)


def _figures(report: "Report") -> list[Figure]:
    top = [name for name in TOP if name in report.metrics][:FIGURES]
    return [
        *((_label(name), metric(name, report.metrics[name]), False) for name in top),
        ("Samples per second", number(report.rows_per_second), False),
        ("Time", duration(report.seconds), False),
        *aside(report),
    ]


def _loss(losses: Sequence[float]) -> str:
    points = [(float(step), loss) for step, loss in enumerate(losses, 1)]
    chart = curves.curve(points, "Loss")
    return section("Loss", "in training, by step", chart) if chart else ""


def _metric(name: str, epochs: Sequence[Mapping[str, float]]) -> str:
    points = [(each["step"], each[name]) for each in epochs if name in each]
    chart = curves.curve(points, name)
    return section(_label(name), "held-out samples, by step", chart) if chart else ""


def _charted(epochs: Sequence[Mapping[str, float]]) -> list[str]:
    found = epochs[-1] if epochs else {}
    return [name for name in ("val/loss", "val/retrieval_r10", "val/accuracy") if name in found]


def _table(epochs: Sequence[Mapping[str, float]]) -> str:
    names = [name for name in (epochs[-1] if epochs else {}) if name not in WHEN]
    if not names:
        return ""
    last = "".join(
        f"<tr><td>{escape(_label(name))}</td>"
        f"<td>{min(each[name] for each in epochs if name in each):.4g}</td>"
        f"<td>{max(each[name] for each in epochs if name in each):.4g}</td>"
        f"<td>{epochs[-1][name]:.4g}</td></tr>"
        for name in names
    )
    table = (
        '<table class="numbers"><thead><tr><th>Metric</th><th>Least</th><th>Most</th>'
        f"<th>Last</th></tr></thead><tbody>{last}</tbody></table>"
    )
    return section("Held-out split", f"over {len(epochs):,} epochs", table)


def _label(name: str) -> str:
    """`Retrieval r10` of `val/retrieval_r10`."""
    return label(name.removeprefix("val/"))
