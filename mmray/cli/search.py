"""`mmray search`: an index asked with words, pictures, sounds or rows of its own."""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmray.cli.told import AsJson, emit, told, with_storage
from mmray.errors import RefusedError
from mmray.storage import Storage

if TYPE_CHECKING:
    import numpy as np

    from mmray.index import Index, QueryEncoder
    from mmray.report.hits import Shown

PICTURE_SIDE = 192
_OWN = ("rank", "score", "id", "source_uri", "source_key")
_TITLES = ("caption", "text", "title")
"""Kept columns that may say what a row is, the first that is there."""


@with_storage
def search(  # noqa: PLR0913 (each is an option)
    storage: Storage,
    index: Annotated[str, typer.Argument(metavar="INDEX", help="Folder or s3:// prefix.")],
    text: Annotated[list[str] | None, typer.Option(help="Words to look for; repeatable.")] = None,
    image: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="A picture; repeatable.")
    ] = None,
    audio: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="A sound; repeatable.")
    ] = None,
    like: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="A row to be near to; repeatable.")
    ] = None,
    unlike: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="A row to stay away from; repeatable.")
    ] = None,
    where: Annotated[
        str | None, typer.Option(metavar="SQL", help="Such as \"category = 'food'\".")
    ] = None,
    where_seconds: Annotated[
        float | None, typer.Option(min=0.001, help="Time for --where; left out: 30.")
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, max=10_000, help="Hits.")] = 10,
    exclude_self: Annotated[
        bool, typer.Option("--exclude-self", help="Leave out the rows of --like and --unlike.")
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="PATH", help="Folder of the encoder's weights, or a checkpoint's uri."
        ),
    ] = None,
    version: Annotated[
        int | None, typer.Option(min=1, help="Of the index; left out: the latest.")
    ] = None,
    as_json: AsJson = False,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page with the hits.")
    ] = None,
) -> None:
    """Find rows of an index; all that is looked for adds up to one query."""
    began = time.monotonic()
    query = {"text": text, "image": image, "audio": audio, "like": like, "unlike": unlike}
    asked = {name: list(values) for name, values in query.items() if values}
    with told(as_json):
        _require(asked, model, html)
        import mmray

        opened = mmray.open_index(index, storage, version, where_seconds=where_seconds)
        vector = _vector(opened, asked, model)
        own = [*asked.get("like", ()), *asked.get("unlike", ())] if exclude_self else None
        found = opened.search(vector, k, where=where, exclude=own)
        hits = _hits(opened, found.numbers[0], found.scores[0])
        seconds = round(time.monotonic() - began, 3)
        said = {**asked, "where": where, "k": k, "exclude_self": exclude_self}
        if html is not None:
            _write(html, _page(opened, said, hits))
    if as_json:
        emit(_line({"query": said, "hits": hits, "index": _about(opened), "seconds": seconds}))
    elif html is None:
        _show(hits)
    else:
        typer.echo(str(html))


def _require(asked: Mapping[str, list[str]], model: str | None, html: Path | None) -> None:
    if not asked:
        raise RefusedError("say what to look for: --text, --image, --audio or --like")
    if asked.keys() == {"unlike"}:
        raise RefusedError("--unlike says only what to stay away from: say what to look for too")
    if model is not None and asked.keys() <= {"like", "unlike"}:
        raise RefusedError("--model: --like and --unlike need no encoder; leave --model out")
    if html is not None and (html.is_dir() or not html.absolute().parent.is_dir()):
        raise RefusedError(f"{html}: no file can be written there")


def _vector(index: "Index", asked: Mapping[str, list[str]], model: str | None) -> "np.ndarray":
    import numpy as np

    from mmray.index import combine

    # Before weights are loaded, which takes seconds.
    near = [index.vectors(index.numbers(asked.get(name, ()))) for name in ("like", "unlike")]
    positives = [near[0]]
    wanted = [name for name in ("text", "image", "audio") if name in asked]
    if wanted:
        encoder = index.encoder(model)
        for name in wanted:
            encoder.require(name)
        made = [_encoded(index, encoder, name, each) for name in wanted for each in asked[name]]
        positives.append(np.stack(made))
    return combine(np.concatenate(positives), near[1])


def _encoded(index: "Index", encoder: "QueryEncoder", name: str, value: str) -> "np.ndarray":
    if name == "text":
        return encoder.text(value)
    data = _read(index.storage, value)
    return encoder.image(data) if name == "image" else encoder.audio(data)


def _read(storage: Storage, uri: str) -> bytes:
    """A file of a query, no larger than a sample may be."""
    from mmray.specs.common import Limits

    size, most = storage.stat(uri).size, Limits().bytes
    if size > most:
        raise RefusedError(f"{uri}: {size:,} bytes, a query may have {most:,}")
    return storage.read_bytes(uri)


def _hits(index: "Index", numbers: "np.ndarray", scores: "np.ndarray") -> list[dict[str, Any]]:
    count = int((numbers >= 0).sum())
    rows = index.table(numbers[:count]).to_pylist()
    hits = []
    for rank, (row, score) in enumerate(zip(rows, scores[:count].tolist(), strict=True), 1):
        # A kept column may have a name of ours.
        kept = {f"kept_{name}" if name in _OWN[:2] else name: each for name, each in row.items()}
        first = {"rank": rank, "id": row["id"], "score": round(score, 6)}
        hits.append({**first, **{name: each for name, each in kept.items() if name != "id"}})
    return hits


def _about(index: "Index") -> dict[str, Any]:
    found = index.manifest
    return {
        "uri": index.uri,
        "version": found.version,
        "kind": found.kind,
        "rows": found.rows,
        "metric": found.metric,
        "store": found.made.store,
        "store_version": found.made.store_version,
        "column": found.made.column,
        "encoder": found.made.encoder,
        "fingerprint": found.made.fingerprint,
    }


def _line(value: Any) -> str:
    """JSON has no NaN: a number that isn't one is null."""

    def plain(each: Any) -> Any:
        if isinstance(each, dict):
            return {name: plain(one) for name, one in each.items()}
        if isinstance(each, list):
            return [plain(one) for one in each]
        return None if isinstance(each, float) and not math.isfinite(each) else each

    return json.dumps(plain(value), ensure_ascii=False, default=str, allow_nan=False)


def _show(hits: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    if not hits:
        console.print("no row answers this query")
        return
    title = next(filter(None, map(_title, hits)), "")
    table = Table(box=None)
    for name in ("#", "score", "id", *([title] if title else ()), "source"):
        table.add_column(name, no_wrap=name == "id", overflow="fold")
    for hit in hits:
        words = [str(hit[title] or "")] if title else []
        cells = (str(hit["rank"]), f"{hit['score']:.4f}", hit["id"], *words, _source(hit))
        table.add_row(*map(Text, cells))
    console.print(table)


def _source(hit: Mapping[str, Any]) -> str:
    """Of a raw file its path alone, which ends in its key."""
    uri, key = str(hit["source_uri"]), str(hit["source_key"])
    return uri if uri.endswith(f"/{key}") else f"{uri} {key}"


def _title(hit: Mapping[str, Any]) -> str:
    return next((name for name in _TITLES if isinstance(hit.get(name), str)), "")


def _page(index: "Index", said: Mapping[str, Any], hits: list[dict[str, Any]]) -> str:
    from mmray.report.hits import hits_page

    likes = [*said.get("like", ()), *said.get("unlike", ())]
    pictures = index.thumbnails([*likes, *(hit["id"] for hit in hits)])
    found = index.manifest
    measured = found.measured
    about = {
        "index": f"{index.uri} version {found.version}",
        "kind": f"{found.kind} of {found.rows:,} rows, {found.metric.replace('_', ' ')}",
        "recall": f"{measured.recall:.4f} at {measured.k}",
        "encoder": found.made.encoder,
        "fingerprint": found.made.fingerprint,
        "store": f"{found.made.store} version {found.made.store_version}",
        **({"where": str(said["where"])} if said["where"] else {}),
    }
    return hits_page(
        index.uri.rstrip("/").rpartition("/")[2],
        _asked(index, said, pictures),
        " + ".join(said.get("text", ())),
        [_shown(hit, pictures.get(hit["id"])) for hit in hits],
        about,
    )


def _asked(index: "Index", said: Mapping[str, Any], pictures: Mapping[str, bytes]) -> "list[Shown]":
    from mmray.decode.image import thumbnail
    from mmray.report.hits import Shown
    from mmray.specs.common import Limits

    shown = []
    for file in said.get("image", ()):
        jpeg = thumbnail(_read(index.storage, file), PICTURE_SIDE, Limits().pixels)
        shown.append(Shown(Path(file).name, jpeg=jpeg, facts={"query": "picture"}))
    shown += [Shown(Path(file).name, facts={"query": "sound"}) for file in said.get("audio", ())]
    for word in ("like", "unlike"):
        ids = said.get(word, [])
        for row in index.table(index.numbers(ids)).to_pylist():
            each = _shown(row, pictures.get(row["id"]))
            shown.append(
                Shown(each.id, caption=each.caption, facts={"query": word}, jpeg=each.jpeg)
            )
    return shown


def _shown(row: Mapping[str, Any], jpeg: bytes | None) -> "Shown":
    from mmray.report.hits import Shown

    title = _title(row)
    hidden = {*_OWN, title}
    facts = {
        name: str(value)
        for name, value in row.items()
        if name not in hidden and value is not None and not isinstance(value, bytes)
    }
    facts["source"] = _source(row)
    return Shown(
        row["id"],
        row.get("score") if "rank" in row else None,
        str(row.get(title) or ""),
        facts,
        jpeg,
    )


def _write(path: Path, page: str) -> None:
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise RefusedError(f"{path}: {error.strerror}") from error
