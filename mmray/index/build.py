"""Builds an index from a store, or brings one up to date: start, pieces, finish, publish.

Whatever is killed goes on where it was: the work of a build is named after what goes in, and each
step that is done leaves a small document that says so. Nothing is seen before the manifest, which
comes last.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TypeVar

import numpy as np
import psutil

from mmray.errors import Interrupted, JobFailed, RefusedError
from mmray.index import files, manifest
from mmray.index.asked import Asked
from mmray.index.changes import Changes, changes
from mmray.index.column import Column, PartRows
from mmray.index.finish import Ended, Ending, finish
from mmray.index.kinds import KINDS, choices
from mmray.index.manifest import File, Manifest
from mmray.index.pieces import Added, Piece, Recipe, add
from mmray.index.start import Start, start
from mmray.index.truth import Questions, Truth, depth_for
from mmray.index.tune import Tried
from mmray.index.workers import on_cluster, spread
from mmray.report.progress import Progress
from mmray.storage import join

PIECE_BYTES = 512 * 1024 * 1024
PIECE_SHARE = 8
"""A piece takes this part of the memory at the most."""
ONE_PIECE_BYTES = 2 * 1024 * 1024 * 1024
"""An index that this process builds is one piece up to this size: pieces are written and read
again, and what a kill loses of one is a minute's work."""
GRAPH_ROWS = 1_000_000
"""Rows of one graph: graphs can't be merged, and each costs every search."""
REBUILD_SHARE = 0.2
"""Rows that no longer count, of all, past which the index is built anew."""
OUTGROWN = 2
"""Clusters were trained for so many rows; past this many times as many they are too few."""


Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(slots=True)
class Built:
    """What a build did."""

    manifest: Manifest
    before: Manifest | None = None
    """The version that it went on from; None where there was none, or it could not be used."""
    why: str = ""
    """Why the index was built as a whole though there was one."""
    added: int = 0
    removed: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=dict)
    curve: tuple[Tried, ...] = ()
    samples: tuple[tuple[int, tuple[tuple[int, float], ...]], ...] = ()


class Build:
    """One run of an index job."""

    def __init__(
        self, asked: Asked, run_id: str, show: Progress, signalled: Sequence[int] = ()
    ) -> None:
        """`signalled` gets the signals that come; they are looked at between steps.

        Raises:
            RefusedError: the output holds an index of another model or column.
        """
        self.asked, self.run_id = asked, run_id
        self.show, self.signalled = show, signalled
        self.spec, self.storage, self.root = asked.spec, asked.storage, asked.root
        self.store, self.latest = asked.store, asked.latest
        self.memory = self.spec.index.memory or psutil.virtual_memory().total // 2
        self.why = asked.unlike() or self._damage()
        self._below = ""

    def run(self) -> Built:
        """Do what is left.

        Raises:
            RefusedError: no row has a vector, or no kind fits the memory.
            JobFailed: recall stayed below the floor; nothing was published.
            Interrupted: a signal came; what is done counts when the job runs again.
        """
        if self.latest is not None and self.latest.made == self.asked.made and not self.why:
            return Built(self.latest, self.latest)
        self.storage.require_conditional_put(self.root)
        try:
            return (self.latest and self._updated(self.latest)) or self._whole()
        except (RefusedError, FileNotFoundError):
            # Another run that publishes first takes away what this one stands on.
            other = self._overtaken()
            if other is None:
                raise
            return Built(other, self.latest)

    def _updated(self, latest: Manifest) -> Built | None:
        """The index brought up to date; None where it has to be built as a whole."""
        if self.why:
            return None
        try:
            return self._update(latest)
        except RefusedError as error:
            if self._overtaken() is not None:
                raise
            self.why = f"what is there can't be used: {error}"
            return None

    def _damage(self) -> str:
        """What is wrong with the files that are there, as far as their sizes tell."""
        try:
            for file in self.latest.files if self.latest else ():
                files.require(self.storage, self.root, file)
        except RefusedError as error:
            return f"what is there can't be used: {error}"
        return ""

    # --- an index as a whole ---------------------------------------------------------------------

    def _whole(self) -> Built:
        """Build all of it, with the next kind where one does not reach the recall."""
        if self.why:
            self.show.say(f"building anew: {self.why}")
        parts = tuple(PartRows(each.path, each.rows) for each in self.store.parts() if each.rows)
        choices(self.spec.index, self.store.count, self.asked.dim, self.memory)  # refuses at once
        rung = 0
        while True:
            building = self._building("whole", rung)
            self._say("sampling and training")
            started = self._one(
                start,
                Start(
                    storage=self.storage,
                    root=self.root,
                    building=building,
                    column=self._column,
                    parts=parts,
                    options=self.spec.index,
                    memory=self.memory,
                    rung=rung,
                ),
                heavy=min(self.memory, 1 << 31),
            )
            if started.questions is None:
                raise RefusedError(
                    f"{self.store.uri}: none of its {self.store.count:,} rows has a vector in "
                    f"{self.spec.column}"
                )
            choice = started.choice
            recipe = self._recipe(building, choice.kind, choice.factory)
            recipe = replace(recipe, trained=started.trained, questions=started.questions)
            self.show.say(f"building {choice.factory} over {self.store.count:,} rows")
            built = self._built(recipe, parts, before=None, seconds={"train": started.seconds})
            if built is not None:
                return built
            if started.last:
                raise JobFailed(self._below)
            self.show.say(f"{self._below}; trying the next kind")
            rung += 1

    def _built(
        self,
        recipe: Recipe,
        parts: Sequence[PartRows],
        before: Manifest | None,
        removed: np.ndarray | None = None,
        seconds: dict[str, float] | None = None,
    ) -> Built | None:
        """Pieces, finish, publish; None where the recall stays below the floor."""
        added = self._pieces(recipe, parts)
        removed = np.empty(0, np.int64) if removed is None else removed
        if before is None and not any(piece.rows for piece in added):
            raise RefusedError(
                f"{self.store.uri}: none of its {self.store.count:,} rows has a usable vector in "
                f"{self.spec.column}"
            )
        self._say("merging, tuning and measuring")
        ended = self._one(
            finish,
            Ending(
                recipe=recipe,
                added=tuple(added),
                k=self.spec.index.k,
                floor=self.spec.index.min_recall,
                queries=self.spec.index.queries or self.spec.column,
                before=before,
                removed=removed,
            ),
            heavy=self.memory,
        )
        reached, floor = ended.measured.recall, self.spec.index.min_recall
        if reached < floor:
            self._below = (
                f"{recipe.factory} reaches recall@{self.spec.index.k} {reached:.4f} on held-out "
                f"queries, and index.min_recall is {floor:g}: not published"
            )
            self._tidy(recipe, added, ended, None)
            return None
        version = self._publish(recipe, ended, before)
        self._tidy(recipe, added, ended, version)
        built = Built(version, before, self.why, curve=ended.curve, samples=ended.samples)
        built.added = sum(piece.rows for piece in added)
        built.removed = len(removed)
        total = Counter({**(seconds or {}), **ended.seconds})
        for piece in added:
            built.left_out.update(piece.left_out)
            for stage, spent in piece.seconds.items():
                total[stage] += spent  # type: ignore[assignment]
        built.seconds = {stage: round(spent, 3) for stage, spent in total.items()}
        return built

    def _pieces(self, recipe: Recipe, parts: Sequence[PartRows]) -> list[Added]:
        pieces = list(self._cut(recipe, parts))
        total = sum(piece.rows for piece in pieces) or 1
        found: dict[int, Added] = {}
        row_bytes = KINDS[recipe.kind].row_bytes(self.asked.dim, self.asked.dim)
        heavy = int(max((piece.rows for piece in pieces), default=0) * row_bytes) + (1 << 28)
        work = [(recipe, piece) for piece in pieces]
        rows = 0
        for place, added in spread(add, work, self.spec.resources, heavy):
            found[place] = added
            rows += pieces[place].rows
            self.show.update(rows=rows, fraction=rows / total, stage="adding")
            self._stop_if_asked()
        return [found[place] for place in range(len(pieces))]

    def _cut(self, recipe: Recipe, parts: Sequence[PartRows]) -> Iterator[Piece]:
        """Parts by their order, as many as a piece may hold; a larger part is cut."""
        row_bytes = KINDS[recipe.kind].row_bytes(self.asked.dim, self.asked.dim)
        total = sum(part.rows for part in parts) * row_bytes
        room = self.spec.resources.piece or min(PIECE_BYTES, self.memory // PIECE_SHARE)
        here = not on_cluster(self.spec.resources) and not self.spec.resources.piece
        if here and total <= ONE_PIECE_BYTES:
            room = max(room, int(total) + 1)
        most = max(4096, int(room / row_bytes))
        if not KINDS[recipe.kind].merges:
            most = GRAPH_ROWS
        waiting: list[PartRows] = []
        number = 0
        for part in (some for each in parts for some in _slices(each, most)):
            if waiting and sum(each.rows for each in waiting) + part.rows > most:
                yield Piece(f"{number:06d}", tuple(waiting))
                number, waiting = number + 1, []
            waiting.append(part)
        if waiting:
            yield Piece(f"{number:06d}", tuple(waiting))

    # --- an index brought up to date -------------------------------------------------------------

    def _update(self, before: Manifest) -> Built | None:
        """Add and remove what changed; None where the index has to be built as a whole."""
        self._say("comparing with the index")
        found = changes(before, self.store, lambda file: files.get(self.storage, self.root, file))
        self.why = self._outgrown(before, found)
        if self.why:
            return None
        self.show.say(f"{found.rows:,} rows to add, {len(found.removed):,} to take out")
        building = self._building(f"after {before.version}", 0)
        recipe = self._recipe(building, before.kind, before.factory)
        recipe = replace(recipe, trained=before.trained)
        if found.rows:
            recipe = replace(recipe, questions=self._questions(before, building))
        built = self._built(recipe, found.added, before, found.removed)
        if built is None:
            self.why = "recall fell below the floor as rows were added"
        return built

    def _outgrown(self, before: Manifest, found: Changes) -> str:
        total = sum(segment.rows for segment in before.segments) + found.rows
        dead = before.dead_rows + len(found.removed)
        if dead > REBUILD_SHARE * total:
            return f"{dead:,} of its {total:,} rows don't count any more"
        live = total - dead
        if KINDS[before.kind].clusters and live > OUTGROWN * before.trained_rows:
            return f"it was trained for {before.trained_rows:,} rows and has {live:,}"
        if self.spec.index.kind == "auto" and live > OUTGROWN * before.trained_rows:
            return f"it was chosen for {before.trained_rows:,} rows and has {live:,}"
        # Refuses what does not fit any more.
        fits = choices(
            self.spec.index.model_copy(update={"kind": before.kind}), live, self.asked.dim, 1 << 62
        )
        return "it does not fit the memory any more" if fits[0].bytes > self.memory else ""

    def _questions(self, before: Manifest, building: str) -> File:
        """The held-out queries that the index has, for the new pieces."""
        assert before.truth is not None
        truth = Truth.read(files.get(self.storage, self.root, before.truth))
        none = np.full(len(truth.vectors), "")
        with files.scratch() as folder:
            path = folder / "questions.npz"
            Questions(truth.vectors, none, np.full(len(none), -1, np.int64)).save(path)
            return files.put(self.storage, path, self.root, f"{building}/questions.npz")

    # --- steps that both share -------------------------------------------------------------------

    @property
    def _column(self) -> Column:
        return Column(
            storage=self.storage,
            store=self.store.uri,
            name=self.spec.column,
            dim=self.asked.dim,
            unit=self.spec.index.metric == "cosine",
        )

    def _recipe(self, building: str, kind: str, factory: str) -> Recipe:
        return Recipe(
            storage=self.storage,
            root=self.root,
            building=building,
            column=replace(self._column, beside=tuple(self.asked.schema.names)),
            kind=kind,
            factory=factory,
            schema=self.asked.schema,
            depth=depth_for(self.spec.index.k),
        )

    def _building(self, what: str, rung: int) -> str:
        """The build's folder, named after all that decides what comes of it."""
        facts = {
            "what": what,
            "rung": rung,
            "made": [self.asked.made.store, self.asked.made.store_version, self.asked.made.column],
            "fingerprint": self.asked.made.fingerprint,
            "options": self.asked.options,
            "memory": self.spec.index.memory,
            "columns": self.asked.columns,
            "latest": self.latest.version if self.latest else 0,
        }
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
        return f"_mmray/building/{key}"

    def _publish(self, recipe: Recipe, ended: Ended, before: Manifest | None) -> Manifest:
        total = sum(segment.rows for segment in ended.segments)
        live = total - ended.dead_rows
        version = Manifest(
            version=self.latest.version + 1 if self.latest else 1,
            made=self.asked.made,
            kind=recipe.kind,
            factory=recipe.factory,
            metric=self.spec.index.metric,
            dim=self.asked.dim,
            rows=live,
            parameters=ended.parameters,
            min_recall=self.spec.index.min_recall,
            measured=ended.measured,
            segments=ended.segments,
            columns=self.asked.columns,
            trained_rows=before.trained_rows if before else live,
            trained=self._kept(recipe.trained),
            truth=ended.truth,
            dead=ended.dead,
            dead_rows=ended.dead_rows,
            unmeasured=ended.unmeasured,
            options=self.asked.options,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            run_id=self.run_id,
        )
        if manifest.publish(self.root, self.storage, version):
            return version
        other = self._overtaken()
        if other is None:
            raise JobFailed(f"{self.root}: another run published an index of other rows meanwhile")
        return other

    def _overtaken(self) -> Manifest | None:
        """What another run has published of the same rows since this one looked."""
        if not manifest.exists(self.root, self.storage):
            return None
        other = manifest.read(self.root, self.storage)
        newer = self.latest is None or other.version > self.latest.version
        if not newer or other.made != self.asked.made or other.options != self.asked.options:
            return None
        self.show.say(f"another run published version {other.version} of the same rows")
        return other

    def _kept(self, trained: File | None) -> File | None:
        """The trained index at a place that outlives the build's folder."""
        if trained is None or not trained.path.startswith("_mmray/"):
            return trained
        local = files.get(self.storage, self.root, trained)
        path = f"shared/{trained.sha256[:32]}.trained.faiss"
        return files.put(self.storage, local, self.root, path)

    def _tidy(
        self, recipe: Recipe, added: Sequence[Added], ended: Ended, version: Manifest | None
    ) -> None:
        """Remove what no version names: the build's folder, and pieces that were merged.

        What another run of the same build still needs may go too: it then fails, and its next run
        finds the published version.
        """
        named = {file.path for file in version.files} if version else set()
        before = {file.path for file in self.latest.files} if self.latest else set()
        mine = {file.path for piece in added for file in piece.files}
        mine |= {
            file.path
            for segment in ended.segments
            for file in (segment.index, segment.table, segment.vectors)
            if file is not None
        }
        mine |= {file.path for file in (ended.truth, ended.dead) if file is not None}
        gone = [join(self.root, path) for path in sorted(mine - named - before)]
        gone += [each.uri for each in self.storage.list(join(self.root, recipe.building))]
        for uri in gone:
            with suppress(FileNotFoundError):
                self.storage.delete(uri)

    def _one(self, function: Callable[[Task], Result], task: Task, heavy: int) -> Result:
        """One call where the work is done."""
        self._stop_if_asked()
        [(_, result)] = spread(function, [task], self.spec.resources, heavy)
        self._stop_if_asked()
        return result

    def _stop_if_asked(self) -> None:
        if self.signalled:
            raise Interrupted(self.signalled[0])

    def _say(self, stage: str) -> None:
        self.show.update(stage=stage)


def _slices(part: PartRows, most: int) -> Iterator[PartRows]:
    """The part itself, or runs of its rows where it is much larger than a piece."""
    if part.rows <= 2 * most:
        yield part
        return
    places = np.arange(part.rows) if part.take is None else part.take
    for first in range(0, part.rows, most):
        some = places[first : first + most]
        yield PartRows(part.path, len(some), some)
