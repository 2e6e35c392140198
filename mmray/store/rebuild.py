"""A rebuild for another model: a store of its own gathers the parts, then one commit swaps them in.

The staging store lies under the main one, so the main table names its parts by relative path and
nothing is copied. Until the swap, readers see the old model's rows and nothing else; a rebuild that
is killed goes on in the same staging store.
"""

import json
import uuid
from dataclasses import replace
from datetime import UTC, datetime

from deltalake import Schema
from deltalake.transaction import AddAction, create_table_with_add_actions

from mmray.store import delta
from mmray.store.liveness import Standing, standings
from mmray.store.table import Store


def swap(main: Store, staging: Store) -> int:
    """Replace rows, columns and meta of `main` by those of `staging`; the new version's number.

    Does nothing where `main` already is of that model: an earlier swap landed, or another run's.

    Raises:
        StorageError: storage stayed broken; the rebuild can be taken up again.
    """
    prefix = staging.uri.removeprefix(main.uri).strip("/")
    if staging.uri == main.uri or not staging.uri.startswith(main.uri):
        raise ValueError(f"{staging.uri} is not inside {main.uri}")
    commit = uuid.uuid4().hex
    main.reload()
    since, tried = main.version, False
    old = standings(main.quarantine.groups(), main.stored)

    def once() -> bool:
        nonlocal tried
        main.reload()
        if main.meta.fingerprint == staging.meta.fingerprint:
            return True
        staging.reload()
        main.quarantine.ensure_rows(staging.quarantine.live())
        tried = True
        _overwrite(main, staging, prefix, commit)
        main.reload()
        return True

    delta.persist(main.uri, once)
    landed = main.landed(commit, since) if tried else None
    if landed is not None:
        _yield_to_rival(main, staging, landed, since)
        _clean(main, staging, old)
    return main.version


def _overwrite(main: Store, staging: Store, prefix: str, commit: str) -> None:
    now = int(datetime.now(UTC).timestamp() * 1000)
    actions = delta.actions(staging._table)
    adds = [
        AddAction(f"{prefix}/{row['path']}", row["size_bytes"], {}, now, True, _stats(row))
        for row in actions.to_pylist()
    ]
    lineage = {
        **staging.meta.lineage,
        "rebuilt_from": {"version": main.version, "fingerprint": main.meta.fingerprint},
    }
    create_table_with_add_actions(
        main.uri,
        Schema.from_arrow(staging.schema),
        adds,
        mode="overwrite",
        description=replace(staging.meta, lineage=lineage).to_json(),
        storage_options=main.storage.delta_options(main.uri),
        commit_properties=delta.properties(
            commit=commit, run="", quarantine=main.quarantine.version
        ),
        post_commithook_properties=delta.HOOKS,
    )


def _stats(row: dict[str, object]) -> str:
    """The Delta statistics of a part, from the flattened ones; its bounds may be wider."""
    named: dict[str, dict[str, object]] = {"min": {}, "max": {}, "null_count": {}}
    for name, value in row.items():
        kind, _, column = name.partition(".")
        if kind in named and column and value is not None:
            named[kind][column] = value
    return json.dumps(
        {
            "numRecords": row["num_records"],
            "minValues": named["min"],
            "maxValues": named["max"],
            "nullCount": named["null_count"],
            "tightBounds": False,
        }
    )


def _yield_to_rival(main: Store, staging: Store, landed: int, since: int) -> None:
    """deltalake reads the table itself before it overwrites: where another run's swap came between
    our look and that, take our commit back. Theirs is as good and may have grown since."""
    if landed - 1 <= since:
        return
    before = Store.open(main.uri, main.storage, landed - 1)
    if before.meta.fingerprint == staging.meta.fingerprint:
        main.rollback(landed - 1)


def _clean(main: Store, staging: Store, old: dict[tuple[str, str], Standing]) -> None:
    """Remove the old model's quarantine rows. Those of staging's whole-quarantined fragments stay
    though both may name the same samples, for they are what the new rows were made beside."""
    live = staging.quarantine.live()
    keys = set(zip(live["attempt"].to_pylist(), live["fragment"].to_pylist(), strict=True))
    main.quarantine.remove(key for key, was in old.items() if was == "live" and key not in keys)
