"""Finds the quickest setting of a search that reaches the recall, and measures what it gives.

Half of the held-out queries choose the setting, the other half measure it: a setting that was only
lucky does not pass.
"""

import time
from dataclasses import dataclass

import faiss

from mmray.index.building.truth import Truth, recall
from mmray.index.kinds import KINDS, Parameters, steps
from mmray.index.searching.loaded import Loaded

RERANKS = (1, 2, 4, 8, 16, 32, 64, 128)
EFFORTS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
LEAST_SECONDS = 0.25
"""A rate is taken over as long as this at least."""


@dataclass(frozen=True, slots=True)
class Tried:
    """One setting, and what it gave."""

    parameters: Parameters
    recall: float
    queries_per_second: float


@dataclass(frozen=True, slots=True)
class Tuned:
    """The setting that was chosen."""

    parameters: Parameters
    recall: float
    """On the queries that measure."""
    queries: int
    """How many those are."""
    queries_per_second: float
    threads: int
    curve: tuple[Tried, ...]
    """All settings that were tried, on the queries that tune."""


def tune(loaded: Loaded, truth: Truth, k: int, floor: float) -> Tuned:
    """Choose the parameters of `loaded`.

    Args:
        loaded: the index.
        truth: queries with their true neighbours, without dead rows.
        k: neighbours that recall is measured over.
        floor: recall to reach; where nothing does, the best setting is chosen.
    """
    choosing, judging = truth.half(0), truth.half(1)
    trials = _Trials(loaded, choosing, k)
    ladder = _ladder(trials, floor)
    best, reached = ladder[0], 0.0
    for parameters in ladder:  # a setting that was only lucky on the first half goes up one step
        score = trials.score(parameters, judging)
        if score > reached:
            best, reached = parameters, score
        if score >= floor:
            break
    return Tuned(
        best,
        reached,
        len(judging.vectors),
        trials.rate(best, judging),
        faiss.omp_get_max_threads(),
        tuple(trials.curve),
    )


class _Trials:
    """Settings tried on the queries that tune, each once."""

    def __init__(self, loaded: Loaded, truth: Truth, k: int) -> None:
        self.loaded, self.truth, self.k = loaded, truth, k
        self.curve: list[Tried] = []

    def score(self, parameters: Parameters, truth: Truth) -> float:
        return recall(self.loaded.search(truth.vectors, self.k + 1, parameters), truth, self.k)

    def rate(self, parameters: Parameters, truth: Truth) -> float:
        """Queries per second, all of them as one batch of about the same work as a user's."""
        if not len(truth.vectors):
            return 0.0
        done, start = 0, time.perf_counter()
        while True:
            self.loaded.search(truth.vectors, self.k, parameters)
            done += len(truth.vectors)
            spent = time.perf_counter() - start
            if spent >= LEAST_SECONDS:
                return done / spent

    def trial(self, parameters: Parameters) -> Tried:
        for tried in self.curve:
            if tried.parameters == parameters:
                return tried
        score = self.score(parameters, self.truth)
        start = time.perf_counter()
        self.loaded.search(self.truth.vectors, self.k, parameters)
        rate = len(self.truth.vectors) / max(1e-9, time.perf_counter() - start)
        self.curve.append(Tried(parameters, score, rate))
        return self.curve[-1]


def _ladder(trials: _Trials, floor: float) -> list[Parameters]:
    """The quickest setting that reaches the floor, then ever more thorough ones."""
    kind = KINDS[trials.loaded.kind]
    if trials.loaded.kind == "flat" or not len(trials.truth.vectors):
        return [{}]
    if not kind.clusters:
        return _climb(trials, [{"ef_search": effort} for effort in EFFORTS], floor)
    probes = steps(trials.loaded.clusters)
    if not kind.codes:
        return _climb(trials, [{"nprobe": each} for each in probes], floor)
    return _rerank(trials, steps(max(min(trials.loaded.clusters, 8), probes[-1] // 8)), floor)


def _rerank(trials: _Trials, probes: list[int], floor: float) -> list[Parameters]:
    """Of codes: more candidates that are ranked again, or more clusters, whichever is quicker."""
    best: tuple[Tried, list[Parameters]] | None = None
    for rerank in RERANKS:
        if rerank > 1 and rerank * trials.k > 2 * trials.loaded.rows:
            break
        ladder = _climb(trials, [{"nprobe": each, "rerank": rerank} for each in probes], floor)
        found = trials.trial(ladder[0])
        reached = best is not None and best[0].recall >= floor
        if reached and best and found.queries_per_second <= best[0].queries_per_second:
            break  # yet more candidates only cost
        best = found, ladder
    assert best is not None
    return best[1]


def _climb(trials: _Trials, settings: list[Parameters], floor: float) -> list[Parameters]:
    """From the first setting on that reaches the floor, by halving: recall grows with them."""
    low, high = 0, len(settings) - 1
    while low < high:
        middle = (low + high) // 2
        if trials.trial(settings[middle]).recall >= floor:
            high = middle
        else:
            low = middle + 1
    trials.trial(settings[low])
    return settings[low:]
