"""mmray: shards of images, text, audio and video into versioned embedding stores, exactly once.

The public API. `import mmray` is cheap: what needs Ray, torch or Arrow is imported on first use.
"""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmray.errors import (
        Interrupted,
        JobFailed,
        MmrayError,
        RefusedError,
        SpecError,
        StorageError,
    )
    from mmray.index import Index
    from mmray.jobs.plan import plan
    from mmray.jobs.replay import replay
    from mmray.report import Report
    from mmray.specs import (
        DuplicatesSpec,
        EmbedSpec,
        IndexSpec,
        JobSpec,
        SearchSpec,
        TrainSpec,
        load_spec,
    )
    from mmray.storage import Storage
    from mmray.store import Store

__version__ = "0.1.0"

__all__ = [
    "DuplicatesSpec",
    "EmbedSpec",
    "Index",
    "IndexSpec",
    "Interrupted",
    "JobFailed",
    "MmrayError",
    "RefusedError",
    "Report",
    "SearchSpec",
    "SpecError",
    "Storage",
    "StorageError",
    "Store",
    "TrainSpec",
    "__version__",
    "load_spec",
    "open_index",
    "open_store",
    "plan",
    "replay",
    "run",
]

_MODULES = {
    "DuplicatesSpec": "mmray.specs",
    "EmbedSpec": "mmray.specs",
    "Index": "mmray.index",
    "IndexSpec": "mmray.specs",
    "Interrupted": "mmray.errors",
    "JobFailed": "mmray.errors",
    "MmrayError": "mmray.errors",
    "RefusedError": "mmray.errors",
    "Report": "mmray.report",
    "SearchSpec": "mmray.specs",
    "SpecError": "mmray.errors",
    "Storage": "mmray.storage",
    "StorageError": "mmray.errors",
    "Store": "mmray.store",
    "TrainSpec": "mmray.specs",
    "load_spec": "mmray.specs",
    "plan": "mmray.jobs.plan",
    "replay": "mmray.jobs.replay",
}
"""Public names by the module that is imported when one is first used."""


def run(
    spec: "str | Path | Mapping[str, Any] | JobSpec",
    *,
    limit: int | None = None,
    quiet: bool = False,
) -> "Report":
    """Run the job that a spec asks for, to its end; a second run does only what is new.

    Args:
        spec: path of a YAML file, a mapping with the same fields, or what `load_spec` returned.
        limit: stop after about this many samples; a later run goes on from there.
        quiet: show no progress on standard error.

    Returns:
        What the run did; its report page is at `outputs["page"]`.

    Raises:
        SpecError: a field is unknown, missing or wrong.
        RefusedError: the job can't start as asked; nothing was written.
        JobFailed: it ended before its work was done; what had finished is committed.
        StorageError: object storage stayed broken after back-off.
        Interrupted: SIGINT or SIGTERM came; what had finished is committed.
    """
    from mmray import jobs
    from mmray.errors import SpecError
    from mmray.specs import load_spec

    if limit is not None and limit < 1:
        raise SpecError("limit", f"must be a positive number, not {limit}")
    loaded = load_spec(spec) if isinstance(spec, str | Path | Mapping) else spec
    return jobs.run(loaded, limit=limit, quiet=quiet)


def open_store(uri: str, storage: "Storage | None" = None, version: int | None = None) -> "Store":
    """Open the store at `uri`.

    Args:
        uri: folder or `s3://` prefix.
        storage: endpoint, profile, role and region; left out, the environment's.
        version: an older version; left out, the latest.

    Raises:
        RefusedError: no store is there, or it has no such version.
        StorageError: object storage stayed broken after back-off.
    """
    from mmray.storage import Storage
    from mmray.store import Store

    return Store.open(uri, storage or Storage(), version)


def open_index(
    uri: str,
    storage: "Storage | None" = None,
    version: int | None = None,
    *,
    threads: int | None = None,
    where_seconds: float | None = None,
) -> "Index":
    """Open the index at `uri`: its files are checked, and its vectors brought to memory.

    Args:
        uri: folder or `s3://` prefix.
        storage: endpoint, profile, role and region; left out, the environment's.
        version: an older version; left out, the latest.
        threads: of a search, for the whole process; left out, one for each core.
        where_seconds: time that a condition may take over all rows; left out, 30.

    Raises:
        RefusedError: no index is there, or a file of it is missing, torn or was changed.
        StorageError: object storage stayed broken after back-off.
    """
    from mmray.index import Index
    from mmray.specs.index import WHERE_SECONDS
    from mmray.storage import Storage

    limit = WHERE_SECONDS if where_seconds is None else where_seconds
    return Index.open(uri, storage or Storage(), version, threads=threads, where_seconds=limit)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'mmray' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
