"""A finished build becomes the next version of the index, and what no version names goes."""

from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime

from mmray.index import manifest
from mmray.index.building.asked import Asked
from mmray.index.building.finish import Ended
from mmray.index.building.pieces import Added, Recipe
from mmray.index.manifest import Manifest
from mmray.storage import blobs, join
from mmray.storage.blobs import File


def publish(
    asked: Asked, recipe: Recipe, ended: Ended, before: Manifest | None, run_id: str
) -> Manifest | None:
    """The new version; None where another run published first.

    Args:
        asked: by the job.
        recipe: of the build.
        ended: what it came to.
        before: the version that rows were added to; None where the index was built as a whole.
        run_id: of the job.

    Raises:
        StorageError: storage stayed broken.
    """
    total = sum(segment.rows for segment in ended.segments)
    live = total - ended.dead_rows
    version = Manifest(
        version=asked.latest.version + 1 if asked.latest else 1,
        made=asked.made,
        kind=recipe.kind,
        factory=recipe.factory,
        metric=asked.spec.index.metric,
        dim=asked.dim,
        rows=live,
        parameters=ended.parameters,
        min_recall=asked.spec.index.min_recall,
        measured=ended.measured,
        segments=ended.segments,
        columns=asked.columns,
        trained_rows=before.trained_rows if before else live,
        trained=_kept(asked, recipe.trained),
        truth=ended.truth,
        dead=ended.dead,
        dead_rows=ended.dead_rows,
        unmeasured=ended.unmeasured,
        options=asked.options,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        run_id=run_id,
    )
    return manifest.publish(asked.root, asked.storage, version)


def overtaken(asked: Asked) -> Manifest | None:
    """What another run has published of the same rows since the job looked."""
    if not manifest.exists(asked.root, asked.storage):
        return None
    other = manifest.read(asked.root, asked.storage)
    newer = asked.latest is None or other.version > asked.latest.version
    if not newer or other.made != asked.made or other.options != asked.options:
        return None
    return other


def tidy(
    asked: Asked,
    recipe: Recipe,
    added: Sequence[Added],
    ended: Ended,
    version: Manifest | None = None,
) -> None:
    """Remove what no version names: the build's folder, and pieces that were merged.

    What another run of the same build still needs may go too: it then fails, and its next run
    finds the published version.
    """
    named = {file.path for file in version.files} if version else set()
    before = {file.path for file in asked.latest.files} if asked.latest else set()
    mine = {file.path for piece in added for file in piece.files}
    mine |= {
        file.path
        for segment in ended.segments
        for file in (segment.index, segment.table, segment.vectors)
        if file is not None
    }
    mine |= {file.path for file in (ended.truth, ended.dead) if file is not None}
    gone = [join(asked.root, path) for path in sorted(mine - named - before)]
    gone += [each.uri for each in asked.storage.list(join(asked.root, recipe.building))]
    for uri in gone:
        with suppress(FileNotFoundError):
            asked.storage.delete(uri)


def _kept(asked: Asked, trained: File | None) -> File | None:
    """The trained index at a place that outlives the build's folder."""
    if trained is None or not trained.path.startswith("_mmray/"):
        return trained
    local = blobs.get(asked.storage, asked.root, trained)
    path = f"shared/{trained.sha256[:32]}.trained.faiss"
    return blobs.put(asked.storage, local, asked.root, path)
