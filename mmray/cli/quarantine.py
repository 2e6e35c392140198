"""`mmray store quarantine` and `mmray store replay`: what failed, and trying it again."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmray.cli.run import Overrides, facts_of
from mmray.cli.store import AtVersion, Uri
from mmray.cli.told import FAILED, AsJson, emit, show, told, with_storage
from mmray.storage import Storage

if TYPE_CHECKING:
    import pyarrow as pa

    from mmray.store.summary import Reason

LIMIT = 20
_LISTED = ("source_uri", "source_key", "stage", "error_type", "message", "run_id", "at", "id")

Reasons = Annotated[
    list[str] | None,
    typer.Option("--reason", metavar="TYPE", help="Only of this error type; repeatable."),
]


@with_storage
def quarantine(  # noqa: PLR0913 (options of a command)
    storage: Storage,
    uri: Uri,
    by: Annotated[str, typer.Option(help="Count by reason, stage, shard or run.")] = "reason",
    reasons: Reasons = None,
    limit: Annotated[int, typer.Option(min=0, help="List so many samples at most.")] = LIMIT,
    version: AtVersion = None,
    as_json: AsJson = False,
) -> None:
    """Samples that could not be used: how many for which reason, with examples."""
    with told(as_json):
        import mmray
        from mmray.store.summary import EXAMPLES, of_reasons, summary

        store = mmray.open_store(uri, storage, version)
        rows = of_reasons(store.quarantined(), reasons or ())
        groups = summary(rows, by, min(EXAMPLES, limit))
    table = store.quarantine.uri
    if as_json:
        emit(
            {
                "uri": store.uri,
                "version": store.version,
                "table": table,
                "quarantined": rows.num_rows,
                "by": by,
                "groups": [_told(asdict(group)) for group in groups],
                "rows": _listed(rows, limit),
            }
        )
        return
    typer.echo(f"{store.uri} version {store.version}: {rows.num_rows:,} samples in quarantine")
    _print(groups, limit)
    if rows.num_rows:
        typer.echo(f"It is a Delta table, at {table}; `mmray store replay` tries them again")


def replay(  # noqa: PLR0913 (options of a command)
    uri: Uri,
    spec: Annotated[Path, typer.Argument(metavar="SPEC", help="YAML file of the job.")],
    reasons: Reasons = None,
    overrides: Overrides = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Try so many samples at most.")] = None,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
) -> None:
    """Try the quarantined samples of a store again; those that are good now come into it."""
    with told(as_json) as job:
        from mmray.jobs.replay import replay as try_again
        from mmray.specs import read_fields

        job.kind = "replay"
        fields = read_fields(spec, overrides or ())
        report = try_again(uri, fields, reasons=reasons or (), limit=limit, quiet=quiet)
    if as_json:
        emit(report.line())
    else:
        tried = {
            "rows": f"{report.rows_read:,} tried again, {report.rows_written:,} good by now",
            "skipped": f"{report.rows_skipped:,} whose shards changed, are gone or another spec's",
        }
        show(facts_of(report) | tried)
    if report.status == "failed":
        raise typer.Exit(FAILED)


def _print(groups: "list[Reason]", limit: int) -> None:
    """The groups, and of each some examples, as far as the limit goes."""
    width = len(f"{max((group.count for group in groups), default=0):,}")
    for group in groups:
        typer.echo(f"{group.count:>{width},}  {_line(group.name)}")
        for example in group.examples[:limit]:
            words = f"{example.key or '(the shard)'} in {example.uri}: {example.message}"
            typer.echo(f"{'':>{width}}  - {_line(words)}")
        limit -= min(limit, len(group.examples))


def _listed(rows: "pa.Table", limit: int) -> list[Any]:
    listed = rows.select(list(_LISTED)).slice(0, limit).to_pylist()
    return [_told(row | {"at": row["at"].isoformat()}) for row in listed]


def _told(value: Any) -> Any:
    """The value with its texts fit to print: a message may quote a storage client's credentials."""
    from mmray.report.scrub import printable, scrub

    if isinstance(value, dict):
        return {name: _told(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_told(each) for each in value]
    return scrub(printable(value)) if isinstance(value, str) else value


def _line(text: str) -> str:
    """Foreign text on one line of a terminal, without anything that would steer it."""
    return "".join(
        each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in _told(text)
    )
