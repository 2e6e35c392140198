"""`mmray run`, `mmray validate` and `mmray schema`: what works on a spec."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmray.cli.told import FAILED, WRONG, AsJson, describe, emit, say, show, told
from mmray.errors import MmrayError

if TYPE_CHECKING:
    from mmray.report import Report

Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=VALUE", help="Set a field of the spec; repeatable."),
]


def run(
    spec: Annotated[Path, typer.Argument(metavar="SPEC", help="YAML file of the job.")],
    overrides: Overrides = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Stop after about this many samples.")
    ] = None,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
) -> None:
    """Run the job of a spec; a second run does only what is new."""
    import mmray
    from mmray.specs import KINDS, read_fields

    with told(as_json) as job:
        fields = read_fields(spec, overrides or ())
        job.kind = next((kind for kind in KINDS if kind == fields.get("job")), None)
        report = mmray.run(fields, limit=limit, quiet=quiet)
    if as_json:
        emit(report.line())
    else:
        show(facts_of(report))
    if report.status == "failed":
        raise typer.Exit(FAILED)


def facts_of(report: "Report") -> dict[str, str]:
    """What a person wants to know of a run."""
    from mmray.report.progress import clock_time
    from mmray.report.wording import fills_store, places

    facts = {"status": report.status + (f": {report.message}" if report.message else "")}
    seconds = f"{clock_time(report.seconds)}, {report.rows_per_second:,.1f}"
    if fills_store(report):
        facts |= {
            "rows": f"{report.rows_read:,} read, {report.rows_written:,} written",
            "skipped": f"{report.rows_skipped:,} finished before",
            **({"left out": _counts(report.filtered)} if report.filtered else {}),
            "quarantined": _counts(report.errors),
            "time": f"{seconds} rows/s",
            "bottleneck": report.bottleneck or "none: there was nothing to do",
        }
    else:
        facts |= _measured(report, seconds)
    facts |= places(report)
    if "page" in report.outputs:
        facts["report"] = str(report.outputs["page"])
    return facts


def _measured(report: "Report", seconds: str) -> dict[str, str]:
    """Counts and metrics of a job that fills no store."""
    from mmray.report.wording import metrics, wording

    words = wording(report.job)
    facts = {
        words.many: f"{report.rows_read:,} {words.read}, {report.rows_written:,} {words.written}"
    }
    if report.rows_skipped:
        facts["skipped"] = f"{report.rows_skipped:,} finished before"
    if report.filtered:
        facts[words.filtered] = _counts(report.filtered)
    if report.errors:
        facts["quarantined"] = _counts(report.errors)
    for _, name, value in metrics(report):
        # A metric by the name of a count, such as the rows of an index that some were added to.
        said = name.lower()
        facts[f"{said} in all" if said in facts else said] = value
    return facts | {"time": f"{seconds} {words.many}/s"}


def _counts(counts: dict[str, int]) -> str:
    """`3 (2 BadText, 1 EmptyText)`."""
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(counts.items()))
    return f"{sum(counts.values()):,}" + (f" ({kinds})" if kinds else "")


def validate(
    specs: Annotated[list[Path], typer.Argument(metavar="SPEC...", help="YAML files.")],
    overrides: Overrides = None,
) -> None:
    """Check specs without touching their inputs; exit 2 if any is wrong."""
    from mmray.specs import load_spec

    wrong = 0
    for path in specs:
        try:
            spec = load_spec(path, overrides or ())
        except MmrayError as error:
            wrong += 1
            say(f"{path}: {describe(error)}")
        else:
            typer.echo(f"{path}: ok ({spec.job})")
    if wrong:
        raise typer.Exit(WRONG)


def schema(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="Job kind, such as embed.")],
) -> None:
    """Print the JSON schema of a job kind's spec."""
    from mmray.specs import spec_schema

    with told():
        found: dict[str, Any] = spec_schema(kind)
    typer.echo(json.dumps(found, indent=2))
