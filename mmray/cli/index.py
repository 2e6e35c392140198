"""`mmray index`: look at an index, check it, tidy it up."""

from dataclasses import asdict
from typing import Annotated

import typer

from mmray.cli.alike import DryRun, Limit, group, show_removed, show_verdict
from mmray.cli.told import FAILED, AsJson, emit, show, size, told, with_storage
from mmray.storage import Storage

app = group("Look at an index, check it, tidy it up.")

Uri = Annotated[str, typer.Argument(metavar="URI", help="Folder or s3:// prefix of the index.")]
AtVersion = Annotated[
    int | None, typer.Option("--version", min=1, help="A version; left out: the latest.")
]


@app.command()
@with_storage
def info(storage: Storage, uri: Uri, version: AtVersion = None, as_json: AsJson = False) -> None:
    """Its kind, how good it was measured to be, and what a query has to be made by."""
    with told(as_json):
        from mmray.index import manifest
        from mmray.report.words import plural

        place = storage.normalise(uri)
        found = manifest.read(place, storage, version)
    if as_json:
        emit({"uri": place, "bytes": found.size, **asdict(found)})
        return
    made, measured = found.made, found.measured
    tuned = ", ".join(f"{name} {value}" for name, value in sorted(found.parameters.items()))
    dead = f", {found.dead_rows:,} more don't count any more" if found.dead_rows else ""
    show(
        {
            "index": place,
            "version": f"{found.version}, {found.created}",
            "kind": f"{found.kind} ({found.factory})" + (f", {tuned}" if tuned else ""),
            "rows": f"{found.rows:,} in {plural(len(found.segments), 'segment')}{dead}",
            "vectors": f"{made.column}, {found.dim} numbers, {found.metric.replace('_', ' ')}",
            "size": size(found.size),
            "recall": f"{measured.recall:.4f} at {measured.k} over {measured.queries:,} queries of "
            f"{measured.column}; at least {found.min_recall:g} was asked for",
            "speed": f"{measured.queries_per_second:,.0f} queries/s on {measured.threads} threads",
            "store": f"{made.store} version {made.store_version}",
            "encoder": made.encoder,
            "fingerprint": made.fingerprint,
            "columns": ", ".join(found.columns) or "none kept",
        }
    )


@app.command()
@with_storage
def history(storage: Storage, uri: Uri, limit: Limit = None, as_json: AsJson = False) -> None:
    """The versions of an index, newest first."""
    with told(as_json):
        from mmray.index.upkeep import history as versions

        found = versions(uri, storage, limit)
    if as_json:
        listed = [
            {
                "version": each.version,
                "created": each.created,
                "run_id": each.run_id,
                "kind": each.kind,
                "rows": each.rows,
                "recall": each.measured.recall,
                "bytes": each.size,
                "store_version": each.made.store_version,
            }
            for each in found
        ]
        emit({"uri": storage.normalise(uri), "history": listed})
        return
    for each in found:
        typer.echo(
            f"{each.version:>6}  {each.created}  {each.kind}, {each.rows:,} rows of store version "
            f"{each.made.store_version}, recall {each.measured.recall:.4f}, "
            f"{size(each.size)}"
        )


@app.command()
@with_storage
def verify(storage: Storage, uri: Uri, version: AtVersion = None, as_json: AsJson = False) -> None:
    """Read an index to the last byte; exit 1 on loss or damage."""
    with told(as_json):
        from mmray.index.upkeep import verify as check

        result = check(uri, storage, version)
    if as_json:
        emit({**asdict(result), "ok": result.ok})
    else:
        facts = f"{result.rows:,} rows, {result.files:,} files, {size(result.bytes)}"
        show_verdict(f"{result.uri} version {result.version}", result.problems, facts)
    if not result.ok:
        raise typer.Exit(FAILED)


@app.command()
@with_storage
def gc(
    storage: Storage,
    uri: Uri,
    keep: Annotated[int, typer.Option(min=1, help="Versions to keep, the newest.")] = 3,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Remove old versions, and files that no version left needs."""
    with told(as_json):
        from mmray.index.upkeep import gc as collect

        result = collect(uri, storage, keep=keep, dry_run=dry_run)
    if as_json:
        emit({"uri": storage.normalise(uri), "dry_run": dry_run, **asdict(result)})
    else:
        show_removed(result, dry_run)
