"""`mmray store`: look at a store, check it, go back to a version of it, tidy it up."""

import re
from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from mmray.cli.alike import DryRun, Limit, group, show_removed, show_verdict
from mmray.cli.told import FAILED, AsJson, emit, show, size, told, with_storage
from mmray.errors import SpecError
from mmray.storage import Storage

if TYPE_CHECKING:
    from mmray.store import Store

app = group("Look at a store, check it, go back to a version of it, tidy it up.")

Uri = Annotated[str, typer.Argument(metavar="URI", help="Folder or s3:// prefix of the store.")]
AtVersion = Annotated[
    int | None, typer.Option("--version", min=0, help="A version; left out: the latest.")
]

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def _open(uri: str, storage: Storage, version: int | None = None) -> "Store":
    import mmray

    return mmray.open_store(uri, storage, version)


@app.command()
@with_storage
def info(storage: Storage, uri: Uri, version: AtVersion = None, as_json: AsJson = False) -> None:
    """Rows, vectors, the model that made them, and what is in quarantine."""
    with told(as_json):
        store = _open(uri, storage, version)
        about = store.info()
        columns = {field.name: str(field.type) for field in store.schema}
    if as_json:
        emit({**asdict(about), "columns": columns})
        return
    meta = about.meta
    bad = ", ".join(f"{count:,} {kind}" for kind, count in sorted(about.quarantined.items()))
    dims = ", ".join(f"{modality} {dim}" for modality, dim in meta.dims.items())
    show(
        {
            "store": about.uri,
            "version": str(about.version),
            "rows": f"{about.rows:,} of {about.shards:,} shards",
            "parts": f"{about.parts:,}, {size(about.bytes)}",
            "quarantined": f"{sum(about.quarantined.values()):,}" + (f" ({bad})" if bad else ""),
            "vectors": f"{dims}, {'normalised' if meta.normalised else 'as the model gives them'}",
            "encoder": meta.encoder,
            "fingerprint": meta.fingerprint,
            "columns": ", ".join(columns),
        }
    )


@app.command()
@with_storage
def history(storage: Storage, uri: Uri, limit: Limit = None, as_json: AsJson = False) -> None:
    """The versions of a store, newest first."""
    with told(as_json):
        store = _open(uri, storage)
        versions = store.history(limit)
    if as_json:
        listed = [{**asdict(each), "at": each.at.isoformat()} for each in versions]
        emit({"uri": store.uri, "version": store.version, "history": listed})
        return
    for each in versions:
        made = f"  run {each.run_id}" if each.run_id else ""
        typer.echo(f"{each.version:>6}  {each.at:%Y-%m-%d %H:%M:%S}Z  {each.operation}{made}")


@app.command()
@with_storage
def verify(storage: Storage, uri: Uri, version: AtVersion = None, as_json: AsJson = False) -> None:
    """Read a store to the last byte; exit 1 on loss, duplicates or damage."""
    with told(as_json):
        from mmray.store.verify import verify as check

        store = _open(uri, storage, version)
        result = check(store)
    if as_json:
        place = {"uri": store.uri, "version": store.version, "ok": result.ok}
        emit({**place, **asdict(result)})
    else:
        facts = (
            f"{result.rows:,} rows in {result.parts:,} parts, {result.quarantined:,} in quarantine"
        )
        show_verdict(f"{store.uri} version {store.version}", result.problems, facts)
        if result.orphans:
            typer.echo(
                f"remark: {result.orphans:,} files that no version names, left by interrupted "
                "runs; `mmray store gc` removes them"
            )
    if not result.ok:
        raise typer.Exit(FAILED)


@app.command()
@with_storage
def rollback(
    storage: Storage,
    uri: Uri,
    version: Annotated[int, typer.Argument(metavar="VERSION", min=0, help="To go back to.")],
    as_json: AsJson = False,
) -> None:
    """Make an older version the latest again; the next run brings back what it lacks."""
    with told(as_json):
        store = _open(uri, storage)
        before = store.version
        after = store.rollback(version)
    if as_json:
        emit({"uri": store.uri, "restored": version, "before": before, "version": after})
    else:
        typer.echo(f"{store.uri}: version {after} holds what version {version} held")


@app.command()
@with_storage
def gc(
    storage: Storage,
    uri: Uri,
    older_than: Annotated[
        str, typer.Option(metavar="AGE", help="Such as 30m, 24h or 7d; a running job's parts stay.")
    ] = "24h",
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Remove files that no version of the store names."""
    with told(as_json):
        from mmray.store.gc import gc as collect

        age = parse_age(older_than)
        result = collect(_open(uri, storage), older_than=age, dry_run=dry_run)
    if as_json:
        emit({"uri": storage.normalise(uri), "dry_run": dry_run, **asdict(result)})
    else:
        show_removed(result, dry_run)


@app.command()
@with_storage
def compact(storage: Storage, uri: Uri, as_json: AsJson = False) -> None:
    """Merge small parts into larger ones; rows don't change."""
    with told(as_json):
        from mmray.store.compact import compact as merge

        store = _open(uri, storage)
        result = merge(store)
    if as_json:
        emit({"uri": store.uri, **asdict(result)})
    else:
        typer.echo(
            f"{store.uri}: {result.merged:,} parts became {result.written:,}; "
            f"version {result.version}"
        )


def parse_age(text: str) -> timedelta:
    """`90s`, `30m`, `24h` or `7d` as a time span. Raises SpecError."""
    match = re.fullmatch(r"(\d{1,6}(?:\.\d+)?)([smhd])", text.strip().lower())
    if match is None:
        raise SpecError("--older-than", f"{text!r} is no age such as 30m, 24h or 7d")
    return timedelta(**{_UNITS[match[2]]: float(match[1])})
