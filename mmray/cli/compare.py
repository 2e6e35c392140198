"""`mmray store diff` and `mmray store import`: two stores held together, and another tool's."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from mmray.cli.told import AsJson, emit, show, told, with_storage
from mmray.storage import Storage

if TYPE_CHECKING:
    from mmray.store.diff import DiffResult, Example
    from mmray.store.importing import ImportResult

_Version = Annotated[int | None, typer.Option(min=0, help="A version; left out: the latest.")]
_KINDS = ("added", "removed", "changed")


@with_storage
def diff(
    storage: Storage,
    a: Annotated[str, typer.Argument(metavar="A", help="A store.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The store to hold against it; may be A.")],
    a_version: _Version = None,
    b_version: _Version = None,
    as_json: AsJson = False,
) -> None:
    """Rows added, removed and changed from one store or version to another, and vector drift."""
    with told(as_json):
        import mmray
        from mmray.store.diff import diff as compare

        one = mmray.open_store(a, storage, a_version)
        other = mmray.open_store(b, storage, b_version)
        result = compare(one, other)
    if as_json:
        emit({**asdict(result), "same": result.same})
        return
    show(_facts(result))
    for kind in _KINDS:
        _list(kind, result.examples[kind], getattr(result, kind))


def _facts(result: "DiffResult") -> dict[str, str]:
    sides = {
        name: f"{side.uri} version {side.version}: {side.rows:,} rows, {side.encoder} "
        f"({side.fingerprint})"
        for name, side in (("a", result.a), ("b", result.b))
    }
    counts = {kind: f"{getattr(result, kind):,}" for kind in (*_KINDS, "unchanged")}
    drift = {
        f"{modality} drift": "not measured"
        if found is None
        else f"cosine {found.mean:.4f} on average, {found.p5:.4f} at the 5th percentile, "
        f"{found.least:.4f} at the least, of {found.rows:,} rows"
        for modality, found in result.drift.items()
    }
    notes = {"no drift": result.why_no_drift} if result.why_no_drift else {}
    columns = result.columns
    changed = [f"{name} ({one} to {other})" for name, (one, other) in columns.changed.items()]
    schema = {
        "columns of a": ", ".join(columns.only_a),
        "columns of b": ", ".join(columns.only_b),
        "other types": ", ".join(changed),
    }
    return sides | counts | drift | notes | {name: text for name, text in schema.items() if text}


def _list(kind: str, examples: "list[Example]", number: int) -> None:
    for each in examples:
        typer.echo(f"{kind:<9}  {each.id}  {each.source_uri} {each.source_key}")
    if number > len(examples):
        typer.echo(f"{kind:<9}  and {number - len(examples):,} more")


@with_storage
def import_(
    storage: Storage,
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="Output of clip-retrieval.")],
    uri: Annotated[str, typer.Argument(metavar="URI", help="Folder or s3:// prefix of the store.")],
    encoder: Annotated[
        str, typer.Option(metavar="NAME", help="The model that made the embeddings.")
    ],
    keep: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="Metadata to keep; left out: all of text and numbers."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Bring clip-retrieval's .npy and Parquet files into a store; once, however often it is run."""
    with told(as_json):
        from mmray.store.importing import import_clip

        names = None if keep is None else [name.strip() for name in keep.split(",") if name.strip()]
        result = import_clip(folder, uri, storage, encoder, names)
    if as_json:
        emit(asdict(result))
        return
    show(_told(result))


def _told(result: "ImportResult") -> dict[str, str]:
    dims = ", ".join(f"{modality} {dim}" for modality, dim in result.dims.items())
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(result.errors.items()))
    renamed = [f"{old} as {new}" for old, new in result.columns.items() if old != new]
    facts = {
        "store": f"{result.uri} version {result.version}",
        "written": f"{result.written:,} rows, {dims}",
        "there already": f"{result.skipped:,}" if result.skipped else "",
        "replaced": ", ".join(result.replaced),
        "quarantined": f"{result.quarantined:,} ({kinds})" if result.quarantined else "",
        "columns": ", ".join(result.columns.values()),
        "renamed": ", ".join(renamed),
        "left out": ", ".join(f"{name} ({kind})" for name, kind in result.left_out.items()),
    }
    return {name: text for name, text in facts.items() if text}
