"""The section on the health of vectors."""

from mmray.report.document import callout
from mmray.report.vectors import Inspection, VectorCheck
from mmray.report.words import escape, number, plural, section


def checks(vectors: Inspection) -> str:
    """What the vectors that were looked at say of themselves, one row for each modality."""
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
    warnings = "".join(map(callout, check.warnings))
    name = escape(check.modality)
    return (
        f'<div class="check"><div class="row"><h3>{name}</h3><dl>{cells}</dl></div>{warnings}</div>'
    )
