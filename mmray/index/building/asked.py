"""What an index job asks for, held against the store and against the index that is there."""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from mmray.errors import RefusedError, SpecError
from mmray.index import manifest
from mmray.index.manifest import BASE, Made, Manifest
from mmray.specs.index import IndexSpec
from mmray.specs.problems import hint
from mmray.storage import Storage
from mmray.store import Store
from mmray.store.schema import SUFFIX

_HIDDEN = frozenset({*BASE, "thumbnail", "source_etag"})


@dataclass(frozen=True, slots=True)
class Asked:
    """Made by `look`."""

    spec: IndexSpec
    storage: Storage
    root: str
    """Uri of the index."""
    store: Store
    """At the version to index."""
    made: Made
    dim: int
    schema: pa.Schema
    """Of the rows: the base columns, then the kept ones."""
    latest: Manifest | None
    """What is there."""

    @property
    def options(self) -> dict[str, Any]:
        """The `index` field of the spec, as a manifest keeps it."""
        return self.spec.index.model_dump(mode="json")

    @property
    def columns(self) -> dict[str, str]:
        """Kept columns and their types, as a manifest keeps them."""
        return {each.name: str(each.type) for each in self.schema if each.name not in BASE}

    def unlike(self) -> str:
        """Why the index that is there can't be added to; empty where it can, or where there's none.

        Raises:
            RefusedError: it is of another model or column.
        """
        if self.latest is None:
            return ""
        was, now = self.latest.made, self.made
        if was.column != now.column:
            raise RefusedError(
                f"{self.root} is an index of {was.column}, not of {now.column}: name another output"
            )
        if was.fingerprint != now.fingerprint:
            if self.spec.on_model_change == "refuse":
                raise RefusedError(
                    f"{self.root} holds vectors of {was.encoder} (fingerprint {was.fingerprint}); "
                    f"the store's are of {now.encoder} (fingerprint {now.fingerprint}). "
                    "on_model_change: rebuild builds it anew; or name another output"
                )
            return "the store is of another model now"
        if was.store != now.store:
            return f"it was built from {was.store}"
        if self.latest.options != self.options:
            return "the options of the index changed"
        return "the kept columns changed" if self.latest.columns != self.columns else ""


def look(spec: IndexSpec, storage: Storage) -> Asked:
    """Look at the store and the output; writes nothing.

    Raises:
        SpecError: a column isn't there.
        RefusedError: no store is there, or it has no rows.
    """
    store = Store.open(spec.store.uri, storage, spec.store.version)
    _check(spec, store)
    if not store.count:
        raise RefusedError(f"{store.uri}: the store has no rows to index")
    root = storage.normalise(spec.output)
    found = manifest.exists(root, storage)
    return Asked(
        spec=spec,
        storage=storage,
        root=root,
        store=store,
        made=_made(spec, store),
        dim=store.meta.dims[spec.column.removesuffix(SUFFIX)],
        schema=_schema(spec, store),
        latest=manifest.read(root, storage) if found else None,
    )


def _check(spec: IndexSpec, store: Store) -> None:
    names = store.schema.names
    vectors = [name for name in names if name.endswith(SUFFIX)]
    for path, name in (("column", spec.column), ("index.queries", spec.index.queries)):
        if name is not None and name not in vectors:
            raise SpecError(
                path,
                f"{store.uri} has no vector column {name!r}, only {', '.join(vectors)}"
                f"{hint(name, vectors)}",
            )
    able = [name for name in names if name not in vectors and name != "thumbnail"]
    for place, name in enumerate(spec.keep or ()):
        if name not in able:
            raise SpecError(
                f"keep.{place}",
                f"{store.uri} has no column {name!r} to keep, only {', '.join(able)}"
                f"{hint(name, able)}",
            )
    if spec.index.queries is None:
        return
    mine, theirs = (
        store.meta.dims[name.removesuffix(SUFFIX)] for name in (spec.column, spec.index.queries)
    )
    if mine != theirs:
        raise SpecError(
            "index.queries",
            f"vectors of {spec.index.queries} have {theirs} numbers, those of {spec.column} {mine}",
        )


def _schema(spec: IndexSpec, store: Store) -> pa.Schema:
    have = {each.name: each.type for each in store.schema}
    every = [name for name in have if name not in _HIDDEN and not name.endswith(SUFFIX)]
    kept = every if spec.keep is None else [name for name in spec.keep if name not in BASE]
    return pa.schema(
        [
            *(pa.field(name, pa.string()) for name in BASE),
            *(pa.field(name, have[name]) for name in kept),
        ]
    )


def _made(spec: IndexSpec, store: Store) -> Made:
    lineage = store.meta.lineage
    return Made(
        store=store.uri,
        store_version=store.version,
        column=spec.column,
        fingerprint=store.meta.fingerprint,
        encoder=store.meta.encoder,
        encoder_spec=dict(lineage.get("encoder") or {}),
        encode={
            "dtype": lineage.get("dtype", "auto"),
            "max_tokens": lineage.get("max_tokens"),
            "audio_seconds": (store.meta.sampling.get("audio") or {}).get("seconds"),
            "normalize": store.meta.normalised,
        },
    )
