"""Builds an index from a store, or brings one up to date: start, pieces, finish, publish.

Whatever is killed goes on where it was: the work of a build is named after what goes in, and each
step that is done leaves a small document that says so. Nothing is seen before the manifest, which
comes last.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import psutil

from mmray.errors import Interrupted, JobFailed, RefusedError
from mmray.index.building.asked import Asked
from mmray.index.building.changes import changes
from mmray.index.building.cut import cut
from mmray.index.building.finish import Ending, finish
from mmray.index.building.pieces import Added, Recipe, add
from mmray.index.building.publish import overtaken, publish, tidy
from mmray.index.building.start import Start, start
from mmray.index.building.truth import depth_for
from mmray.index.building.tune import Tried
from mmray.index.building.update import damage, outgrown, questions
from mmray.index.column import Column, PartRows
from mmray.index.kinds import KINDS, choices
from mmray.index.manifest import BUILDS, Manifest
from mmray.index.workers import spread
from mmray.report.progress import Progress
from mmray.storage import blobs

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
        self.why = asked.unlike() or damage(asked)
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
            tidy(self.asked, recipe, added, ended)
            return None
        version = publish(self.asked, recipe, ended, before, self.run_id) or self._overtaken()
        if version is None:
            raise JobFailed(f"{self.root}: another run published an index of other rows meanwhile")
        tidy(self.asked, recipe, added, ended, version)
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
        memory, resources = self.memory, self.spec.resources
        pieces = list(cut(parts, recipe.kind, self.asked.dim, memory, resources))
        total = sum(piece.rows for piece in pieces) or 1
        found: dict[int, Added] = {}
        row_bytes = KINDS[recipe.kind].row_bytes(self.asked.dim, self.asked.dim)
        heavy = int(max((piece.rows for piece in pieces), default=0) * row_bytes) + (1 << 28)
        work = [(recipe, piece) for piece in pieces]
        rows = 0
        for place, added in spread(add, work, resources, heavy):
            found[place] = added
            rows += pieces[place].rows
            self.show.update(rows=rows, fraction=rows / total, stage="adding")
            self._stop_if_asked()
        return [found[place] for place in range(len(pieces))]

    # --- an index brought up to date -------------------------------------------------------------

    def _update(self, before: Manifest) -> Built | None:
        """Add and remove what changed; None where the index has to be built as a whole."""
        self._say("comparing with the index")
        found = changes(before, self.store, lambda file: blobs.get(self.storage, self.root, file))
        self.why = outgrown(self.asked, before, found, self.memory)
        if self.why:
            return None
        self.show.say(f"{found.rows:,} rows to add, {len(found.removed):,} to take out")
        building = self._building(f"after {before.version}", 0)
        recipe = self._recipe(building, before.kind, before.factory)
        recipe = replace(recipe, trained=before.trained)
        if found.rows:
            recipe = replace(recipe, questions=questions(self.asked, before, building))
        built = self._built(recipe, found.added, before, found.removed)
        if built is None:
            self.why = "recall fell below the floor as rows were added"
        return built

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
        return f"{BUILDS}/{key}"

    def _overtaken(self) -> Manifest | None:
        """What another run has published of the same rows since this one looked."""
        other = overtaken(self.asked)
        if other is not None:
            self.show.say(f"another run published version {other.version} of the same rows")
        return other

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
